"""t5x_lite vocab train: a SentencePiece vocabulary from files of text."""

from pathlib import Path

from t5x_lite import output


def main(args) -> None:
    """The verb: writes the model and says how a job uses it."""
    from t5x_lite.tasks import documents, vocabulary

    place = Path(args.output)
    output.check_local(args.output, "--output")
    output.check_folder(place.parent if place.suffix == ".model" else place, "--output")
    path = vocabulary.train(documents.expand(args.input, "--input"), args.size, place)
    pieces = vocabulary.model(str(path)).get_piece_size()
    ids = vocabulary.size(str(path))
    table = -(-ids // 128) * 128  # a multiple of the TPU's lane count, which also divides over most meshes
    print(
        f"{path}: {pieces:,} pieces, with {ids - pieces} sentinels {ids:,} ids\n"
        f"use it with --gin.VOCABULARY={path} --gin.architecture.Architecture.vocab_size={table}"
    )
