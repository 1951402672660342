"""The door: every verb and flag of the command line, and one way to say what is wrong.

A verb's module is imported only when it runs, so that --help needs neither JAX
nor TensorFlow.
"""

import argparse
import importlib
import logging
import os
import re
import sys
import traceback

from t5x_lite import __version__, cli_tpu
from t5x_lite.errors import Preempted, RunError, UserError, nearest

CHECKPOINT_HELP = "model directory, with @STEP, @latest or @best for one of its checkpoints"
ENSEMBLE_HELP = CHECKPOINT_HELP + "; may be repeated: the mean of the models' logits"


class _Parser(argparse.ArgumentParser):
    """argparse, except that wrong arguments end like any other wrong input, with the nearest right ones."""

    def parse_known_args(self, args=None, namespace=None):
        # Each parser refuses what it does not know itself: the root knows none of a verb's flags.
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            raise self._unknown(unknown[0])
        return namespace, unknown

    def _unknown(self, word: str) -> UserError:
        kind = "flag" if word.startswith("-") else "argument"
        flags = [s for action in self._actions for s in action.option_strings if s.startswith("--")]
        fix = f"see {self.prog} --help"
        if kind == "argument" and self.get_default("behind") is not None:
            fix = f"a command that is to run stands behind --; {fix}"
        return UserError(f"unknown {kind} {word}", nearest(word.split("=")[0], flags), fix)

    def error(self, message: str):
        see = f"see {self.prog} --help"
        if choice := re.match(r"argument (\S+): invalid choice: '(.*?)'", message):
            name, value = choice.groups()
            what = f"unknown verb {value}" if name == "VERB" else f"{name} cannot be {value}"
            raise UserError(what, nearest(value, self._choices(name)), see)
        if wrong := re.fullmatch(r"argument (\S+): (.*)", message):
            raise UserError(f"{wrong[1]} does not fit", wrong[2], see)
        raise UserError(f"{self.prog} lacks an argument", message, see)

    def _choices(self, name: str) -> list[str]:
        names = ((*a.option_strings, a.metavar, a.dest) for a in self._actions)
        return next(list(a.choices) for a, n in zip(self._actions, names) if name in n)


class _VerbParser(_Parser):
    """The parser of one verb, which names a misspelt flag before the required one that is missing for it."""

    def parse_known_args(self, args=None, namespace=None):
        # The flags of a verb with actions are those of the action, whose own parser comes here too.
        for word in () if self._subparsers else args or ():
            if word.startswith("--") and word.split("=")[0] not in self._option_string_actions:
                raise self._unknown(word)
        return super().parse_known_args(args, namespace)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}, not a whole number of at least 1")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"it is {text!r}, not a whole number of at least 0")
    return int(text)


def _seed(text: str) -> int:
    # JAX takes the others for one of these, or fails.
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"it is {text!r}, not a whole number from 0 to {2**32 - 1}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is {text!r}, not a number") from None


def _seconds(text: str) -> float:
    if not 0 < (seconds := _number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"it is {text!r}, not a number above 0")
    return seconds


def _size(text: str) -> int:
    """Bytes, of 5GB, 500MB or 1GiB as transformers means them."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([KMGT])(I?)B)?", text.strip().upper())
    size = found and int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " "))
    if not size:
        raise argparse.ArgumentTypeError(f"it is {text!r}, not a size such as 5GB or 500MB")
    return size


# A path of this machine. The shell leaves the ~ of --flag=~/x to us; gs:// passes as it is.
_path = os.path.expanduser


def _verb(
    verbs, name: str, module: str, summary: str, gin: bool = False, tasks: bool = False
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.set_defaults(verb=module)
    parser.add_argument("--traceback", action="store_true", help="show Python's traceback with an error")
    if gin:
        parser.add_argument(
            "--gin_file",
            action="append",
            type=_path,
            default=[],
            metavar="F",
            help="path or shipped name; may be repeated, later ones win",
        )
        parser.epilog = "--gin.NAME=value sets a macro or parameter of the gin files; text needs no quotes"
    if tasks:
        parser.add_argument("--module", metavar="M", help="Python module that registers your tasks")
    return parser


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = _Parser(
        prog="t5x_lite", description="T5 pretraining, fine-tuning and evaluation with JAX", allow_abbrev=False
    )
    root.add_argument("--version", action="version", version=f"t5x_lite {__version__}")
    verbs = root.add_subparsers(title="verbs", metavar="VERB", parser_class=_VerbParser)

    train = _verb(verbs, "train", "train", "train a job, going on from its newest checkpoint", gin=True, tasks=True)
    train.add_argument("--dry_run", action="store_true", help="describe the job; compile, read and write nothing")
    train.add_argument("--topology", metavar="T", help="with --dry_run: a TPU slice, v5p:4x4x4 or v5p-128")
    train.add_argument("--num_slices", metavar="N", type=_count, help="with --topology: how many such slices")
    _add_hosts(train)

    _add_eval(verbs)
    _add_infer(verbs)
    _add_score(verbs)

    _verb(verbs, "config", "config", "print the resolved configuration", gin=True)

    _add_precompile(verbs)

    _add_convert(verbs)

    vocab = _verb(verbs, "vocab", "vocab", "train a SentencePiece vocabulary")
    vocab.add_argument("action", choices=["train"])
    vocab.add_argument(
        "--input", type=_path, required=True, metavar="GLOB", help="json.gz, jsonl, TFRecord, Parquet or text files"
    )
    vocab.add_argument("--size", type=_count, default=32000, metavar="N", help="pieces, without the 100 sentinels")
    vocab.add_argument("--output", type=_path, required=True, metavar="F.model")

    _add_tasks(verbs)

    tpu = verbs.add_parser("tpu", help="launch jobs on Cloud TPU and look after them", allow_abbrev=False)
    tpu.set_defaults(verb="tpu", parsed=parsed)
    cli_tpu.add(
        tpu.add_subparsers(title="actions", metavar="ACTION", parser_class=_VerbParser, required=True), _verb, _seconds
    )

    report = _verb(verbs, "report", "report", "write MODEL_DIR/report.html, one self-contained page")
    report.add_argument("model_dir", type=_path, metavar="MODEL_DIR")

    demo = _verb(verbs, "demo", "demo", "pretrain a tiny T5 on this machine's English, evaluate it, show samples")
    demo.add_argument("--output", type=_path, default="demo", metavar="D", help="model directory")
    demo.add_argument("--short", action="store_true", help="a minute of training, to see that all parts work")

    bench = _verb(verbs, "bench", "bench", "measure: train step, decoding, time to a first step, input pipeline")
    bench.add_argument("what", choices=["train", "decode", "startup", "input"])
    bench.add_argument("--gin_file", action="append", type=_path, metavar="F", help="default: models/t5_1_1_small.gin")
    bench.add_argument(
        "--batch_size", type=_count, metavar="N", help="default: 8, for input 128, for decode both 8 and 64"
    )
    bench.add_argument("--inputs", type=_count, default=512, metavar="TOKENS")
    bench.add_argument("--targets", type=_count, metavar="TOKENS", help="default: 114, for decode 64")
    bench.add_argument("--beam_size", type=_count, default=4, metavar="W", help="of decode, beside greedy")
    bench.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    bench.add_argument(
        "--runs", type=_count, default=5, metavar="N", help="measured runs after one that is not counted"
    )
    bench.add_argument("--output", type=_path, metavar="F.json")
    return root


def _add_hosts(verb: argparse.ArgumentParser) -> None:
    """Who a plain host is among several; SLURM, Open MPI and Cloud TPU say it themselves."""
    verb.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="on several hosts: of the first; or JAX_COORDINATOR_ADDRESS"
    )
    verb.add_argument("--num_processes", type=_count, metavar="N", help="how many hosts; or JAX_NUM_PROCESSES")
    verb.add_argument("--process_id", type=_whole, metavar="I", help="which of them, from 0; or JAX_PROCESS_ID")


def _add_eval(verbs) -> None:
    summary = "loss, accuracy and task metrics of a checkpoint, of all, or of each as it appears"
    evaluate = _verb(verbs, "eval", "evaluate", summary, gin=True, tasks=True)
    evaluate.add_argument(
        "--checkpoint",
        type=_path,
        required=True,
        action="append",
        metavar="DIR",
        help="model directory, with @STEP, @latest, @best or @all; may be repeated: the mean of the models' logits",
    )
    evaluate.add_argument("--mixture_or_task", metavar="NAME", help="default: what the model was trained on")
    evaluate.add_argument("--split", default="validation")
    evaluate.add_argument("--num_examples", type=_count, metavar="N", help="at most so many examples of each task")
    evaluate.add_argument("--batch_size", type=_count, default=16, metavar="N")
    evaluate.add_argument("--output_dir", type=_path, metavar="D", help="default: the model directory's eval/")
    evaluate.add_argument(
        "--follow", action="store_true", help="evaluate each checkpoint as it appears, until the run is done"
    )
    evaluate.add_argument(
        "--poll_seconds", type=_seconds, metavar="S", help="with --follow: how often to look; default: 30"
    )
    evaluate.add_argument(
        "--overwrite", action="store_true", help="with @all or --follow: evaluate anew what has been evaluated"
    )
    _add_decoding(evaluate, several=False)


def _add_decoding(verb: argparse.ArgumentParser, several: bool) -> None:
    """The flags of a decoding strategy; `several`: that it may return more than one sequence."""
    verb.add_argument("--decode", choices=["greedy", "beam", "sample"], default="greedy", help="default: greedy")
    verb.add_argument("--beam_size", type=_count, metavar="N", help="of beam; default: 4")
    verb.add_argument("--length_penalty", type=_number, metavar="A", help="alpha, of beam; default: 0.6")
    if several:
        verb.add_argument("--num_return", type=_count, metavar="N", help="completions of an input, best first")
    verb.add_argument("--temperature", type=_number, metavar="T", help="of sample; default: 1")
    verb.add_argument("--top_k", type=_whole, metavar="K", help="of sample: among so many tokens; 0: all, the default")
    verb.add_argument("--top_p", type=_number, metavar="P", help="of sample: among so much probability; default: 1")
    verb.add_argument("--seed", type=_seed, metavar="S", help="of sample; default: 0")
    verb.add_argument("--max_decode_length", type=_count, metavar="T", help="default: the trained targets length")


def _add_output(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--output",
        type=_path,
        metavar="F.jsonl",
        help="the same command goes on where one was cut off; default: stdout",
    )
    verb.add_argument("--overwrite", action="store_true", help="begin --output anew, whatever is there")
    verb.add_argument("--batch_size", type=_count, default=16, metavar="N")


def _add_infer(verbs) -> None:
    infer = _verb(verbs, "infer", "infer", "complete texts with a checkpoint", gin=True, tasks=True)
    infer.add_argument("--checkpoint", type=_path, required=True, action="append", metavar="DIR", help=ENSEMBLE_HELP)
    source = infer.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", metavar="STR", help="one input; the completion is printed")
    source.add_argument(
        "--input",
        type=_path,
        metavar="F",
        help="text, an input a line; .tsv, inputs and targets; .jsonl with the field inputs; each also as .gz",
    )
    source.add_argument("--mixture_or_task", metavar="NAME", help="the inputs of a task")
    infer.add_argument("--split", metavar="S", help="of the task; default: validation")
    infer.add_argument("--num_examples", type=_count, metavar="N", help="at most so many of each task")
    _add_decoding(infer, several=True)
    _add_output(infer)


def _add_score(verbs) -> None:
    summary = "log-probabilities of given targets, whole however long they are"
    score = _verb(verbs, "score", "score", summary, gin=True)
    score.add_argument("--checkpoint", type=_path, required=True, action="append", metavar="DIR", help=ENSEMBLE_HELP)
    score.add_argument(
        "--input",
        type=_path,
        required=True,
        metavar="F",
        help=".jsonl with the fields inputs and targets, or .tsv with these columns; each also as .gz",
    )
    _add_output(score)


def _add_tasks(verbs) -> None:
    """The verb whose actions have arguments of their own."""
    tasks = verbs.add_parser("tasks", help="list, show, check and cache tasks and mixtures", allow_abbrev=False)
    tasks.set_defaults(verb="tasks")
    actions = tasks.add_subparsers(title="actions", metavar="ACTION", parser_class=_VerbParser, required=True)

    _verb(actions, "list", "tasks_list", "every task and mixture, one name a line when piped", gin=True, tasks=True)

    show = _verb(actions, "show", "tasks_show", "raw records, inputs, targets and tokens", gin=True, tasks=True)
    show.add_argument("name", metavar="NAME", nargs="?", help="a task or mixture; default: MIXTURE_OR_TASK_NAME")
    show.add_argument("--n", type=_count, default=3, metavar="N", help="examples")
    show.add_argument("--split", default="train")
    show.add_argument("--seed", type=int, metavar="S", help="shuffles the records; default: the first ones in order")

    check = _verb(actions, "check", "tasks_check", "try your tasks on a few records and say what is wrong", gin=True)
    check.add_argument("module", metavar="MODULE", help="Python module that registers your tasks")
    check.add_argument("--n", type=_count, default=50, metavar="N", help="records of each split")

    cache = _verb(
        actions, "cache", "tasks_cache", "write a task's examples where training reads them", gin=True, tasks=True
    )
    cache.add_argument("name", metavar="NAME", help="a task or mixture")
    cache.add_argument("--output", type=_path, required=True, metavar="D", help="folder of caches: TASK_CACHE_DIR")
    cache.add_argument("--split", action="append", metavar="S", help="may be repeated; default: all")
    cache.add_argument(
        "--shards", type=_count, metavar="N", help="files of a split; default: as the source, at least 16"
    )
    cache.epilog += "; what follows -- goes to Beam, such as -- --runner=DataflowRunner"
    cache.set_defaults(behind=())


def _add_precompile(verbs) -> None:
    summary = "compile a job for a TPU slice that is not here: memory, communication, estimated time and cost"
    precompile = _verb(verbs, "precompile", "precompile", summary, gin=True)
    precompile.add_argument("--topology", required=True, metavar="T", help="a TPU slice: v5p:4x4x4 or v5p-128")
    precompile.add_argument("--num_slices", type=_count, default=1, metavar="N", help="how many such slices")
    precompile.add_argument(
        "--program", choices=["train", "eval", "decode", "all"], default="train", help="the step; default: train"
    )
    precompile.add_argument("--price", type=_seconds, metavar="USD", help="of a chip for an hour")
    precompile.add_argument(
        "--compare",
        action="append",
        metavar="NAME=V,V",
        help="partition, batch_size, microbatches, remat, mesh or a gin name, with values to rank; may be repeated",
    )
    precompile.add_argument("--output", type=_path, metavar="F.json", help="all figures")
    precompile.add_argument("--html", type=_path, metavar="F.html", help="one self-contained page")


def _add_convert(verbs) -> None:
    convert = _verb(verbs, "convert", "convert", "convert a checkpoint: Hugging Face, t5x or our own", gin=True)
    formats = ["hf", "t5x", "native"]
    convert.add_argument("--from", dest="source", required=True, choices=formats)
    convert.add_argument("--to", dest="target", choices=formats, help="default: native, or hf from native")
    convert.add_argument(
        "--input", type=_path, required=True, metavar="D", help="a folder; with @STEP for one of t5x's or our steps"
    )
    convert.add_argument("--output", type=_path, required=True, metavar="D", help="a new folder of this machine")
    convert.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="what hf and t5x store; bfloat16 rounds"
    )
    convert.add_argument("--max_shard_size", type=_size, metavar="5GB", help="of a file, to hf (default: 5GB)")
    convert.add_argument("--scan_layers", action="store_true", help="to t5x: the layout of its scanned network")
    convert.add_argument(
        "--optimizer_state", action="store_true", help="between t5x and native: Adafactor's statistics too"
    )


def _take_gin(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separates --gin.NAME=value (or --gin.NAME value) from the other arguments."""
    rest, bindings, words = [], [], iter(argv)
    for word in words:
        if word.startswith("--gin."):
            binding = word.removeprefix("--gin.")
            if "=" not in binding:
                value = next(words, "--")
                if value.startswith("--"):
                    raise UserError(f"{word} has no value", "a binding is NAME=value", f"write {word}=value")
                binding = f"{binding}={value}"
            bindings.append(binding)
        else:
            rest.append(word)
    return rest, bindings


def _take_behind(words: list[str]) -> tuple[list[str], list[str]]:
    """Separates what follows -- from the other arguments."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def parsed(argv: list[str]) -> argparse.Namespace:
    """The flags of a command line with a verb.

    Raises:
      UserError: it is wrong.
    """
    # What stands behind -- is another program's.
    words, behind = _take_behind(argv)
    words, bindings = _take_gin(words)
    args = parser().parse_args(words)
    if behind:
        if not hasattr(args, "behind"):
            raise UserError("-- is given", f"the verb {words[0]} passes nothing on", "leave out what follows it")
        args.behind = behind
    if bindings and not hasattr(args, "gin_file"):
        raise UserError(f"--gin.{bindings[0]} is given", f"the verb {words[0]} reads no gin files", "leave it out")
    args.gin = bindings
    if getattr(args, "module", None):
        args.gin = [*bindings, f"MIXTURE_OR_TASK_MODULE={args.module}"]
    return args


def run(argv: list[str]) -> int:
    """Runs a command line in this process and returns its exit status."""
    show_traceback = "--traceback" in _take_behind(argv)[0]
    _quiet(show_traceback)
    try:
        words, _ = _take_gin(_take_behind(argv)[0])
        if not words:
            parser().print_help()
            return 0
        args = parsed(argv)
        importlib.import_module(f"t5x_lite.verbs.{args.verb}").main(args)
        return 0
    except (UserError, RunError) as error:
        return _fail("error", error, show_traceback)
    except Preempted as error:
        return _fail("preempted", error, show_traceback)
    except ModuleNotFoundError as error:
        # A machine may have no more than training on tokens needs.
        what, why = f"{error.name} is not installed", f"the verb {words[0]} needs it"
        return _fail(
            "error", UserError(what, why, "Install all that t5x_lite needs: pip install t5x_lite"), show_traceback
        )
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`: nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("t5x_lite: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if (failure := _of_machine(error)) is None:
            raise
        return _fail("error", failure, show_traceback)


def _of_machine(error: Exception) -> RunError | None:
    """What a verb was refused by its devices, which train alone tells more of; None for any other error."""
    jax = sys.modules.get("jax")
    if not isinstance(error, MemoryError) and (jax is None or not isinstance(error, jax.errors.JaxRuntimeError)):
        return None
    said = next(iter(str(error).splitlines()), type(error).__name__).removeprefix("RESOURCE_EXHAUSTED: ")
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return RunError(f"the device failed: {said}", "what is written is whole", "see to that, and run it again")
    return RunError(
        f"there is not enough memory: {said}",
        "what is written is whole",
        "lower --batch_size or --max_decode_length, or shorten the longest inputs, and run the same command again",
    )


def _quiet(show_traceback: bool) -> None:
    """Keeps what TensorFlow and others say about this machine off the terminal, before they are loaded.

    Orbax logs an error with the traceback of each of its threads and tasks, and then raises it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR if show_traceback else logging.CRITICAL)
    sys.excepthook = _excepthook


def _excepthook(kind, error, trace) -> None:
    """Python's own, but for what TensorStore prints once for each file that it was still writing when one failed."""
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)


def _fail(kind: str, error, show_traceback: bool) -> int:
    if show_traceback:
        traceback.print_exc()
    print(f"t5x_lite: {kind}: {error}", file=sys.stderr)
    return error.exit_code


def main() -> None:
    """Entry point of the `t5x_lite` command."""
    try:
        status = run(sys.argv[1:])
    except Exception:
        # Of several hosts one that fails must not wait for the others at its end.
        traceback.print_exc()
        status = 1
    if status:
        # All that is worth keeping is written. The threads of a compiler or of tf.data may go on for minutes, or
        # hang where the interpreter takes down what they hold.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
