"""Raw records to text-to-text examples: vocabularies, sources, objectives and the tasks made of them.

Importing this package is cheap; the modules that define or register seqio tasks
(sources, objectives, pretraining, registry) load TensorFlow, the others do not.
"""

if __name__ != "t5x_lite.tasks":
    # Under a second name each seqio task would be registered twice.
    raise ImportError(f"the package is imported as {__name__!r}; its name is t5x_lite.tasks")
