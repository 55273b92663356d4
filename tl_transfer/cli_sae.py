"""The command that trains a sparse autoencoder."""

import argparse
from typing import Any


def add_to(commands: Any) -> None:
    """Add ``train-sae`` to the subparsers of ``tl-transfer``."""
    train = commands.add_parser(
        "train-sae", help="train a small SAE on a model; run it again to go on after a kill"
    )
    train.add_argument("model", help="bundled name, hub id, folder or GGUF file")
    train.add_argument("hook", help="e.g. resid_post@15")
    train.add_argument("--out", help="folder (default: in the cache, by model and hook point)")
    train.add_argument("--d-sae", type=int, help="features (default 4096)")
    train.add_argument("--k", type=int, help="features on in a row (default 32)")
    train.add_argument("--architecture", help="batchtopk (default) or topk")
    train.add_argument("--tokens", type=int, default=150_000, help="of the bundled texts, about")
    train.add_argument("--texts", help="file with one text a line, instead of the bundled texts")
    train.add_argument("--epochs", type=int, help="passes over the rows (default 2)")
    train.add_argument("--batch-rows", type=int, help="rows of a step (default 512)")
    train.add_argument("--learning-rate", type=float, help="(default 2e-3)")
    train.add_argument("--seed", type=int)
    train.add_argument("--keep-rows", action="store_true", help="keep the captured rows")
    train.add_argument("--quiet", action="store_true", help="no progress bars")
    train.set_defaults(command=_train)


def _train(arguments: argparse.Namespace) -> int:
    from tl_transfer.data.texts import read_lines
    from tl_transfer.models.load import load_model
    from tl_transfer.sae.corpus import general_corpus, texts_corpus
    from tl_transfer.sae.settings import SaeSettings
    from tl_transfer.sae.train import train_sae

    names = ("d_sae", "k", "architecture", "epochs", "batch_rows", "learning_rate", "seed")
    given = {name: getattr(arguments, name) for name in names}
    settings = SaeSettings(**{name: value for name, value in given.items() if value is not None})
    if arguments.texts:
        corpus = texts_corpus(read_lines(arguments.texts))
    else:
        corpus = general_corpus(arguments.tokens)
    site = load_model(arguments.model).at(arguments.hook)
    found = train_sae(
        site,
        folder=arguments.out,
        corpus=corpus,
        settings=settings,
        keep_rows=arguments.keep_rows,
        progress=not arguments.quiet,
    )
    print(summary(found.card))
    print(f"\nwritten to {found.folder}/: cfg.json, sae_weights.safetensors, card.json")
    return 0


def summary(card: dict[str, Any]) -> str:
    """The card in a few lines; all of it is in card.json."""
    held, controls = card["held_out"], card["controls"]
    interval = held["fvu_ci95"]
    ci = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    lines = [
        f"{card['space']['model']} {card['space']['hook_point']}: {card['settings']['d_sae']} "
        f"features, {card['rows']['train']} rows in {card['steps']} steps",
        f"FVU          {held['fvu']:.3f}{ci} on {held['n_rows']} rows of {held['n_documents']} "
        f"unseen documents (random dictionary {controls['random_dictionary']['fvu']:.3f}, "
        f"{controls['pca']['k']} principal components {controls['pca']['fvu']:.3f})",
        f"L0           {held['l0']:.1f}",
        f"never on     {card['dead_share']:.1%} over {card['dead_over_rows']} rows",
    ]
    if "loss" in card:
        arms = card["loss"]["arms"]
        names = {"mapped": "SAE", "random_dictionary": "random dictionary", "pca": "PCA"}
        shares = [
            f"{names[name]} {arms[name]['recovered']:.1%}"
            for name in names
            if name in arms and arms[name]["recovered"] is not None
        ]
        lines.append(f"loss kept    {', '.join(shares)} (mean ablation 0 %)")
    left = card["left_out"]["train"]
    lines.append(
        f"left out     {left['position_0']} tokens at position 0, "
        f"{left['massive_norm']} of massive norm"
    )
    return "\n".join(lines)
