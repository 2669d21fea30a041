"""One language-model training, from texts to a folder that explains itself."""

from pathlib import Path
from typing import Any

import torch

from sinklens.errors import ResultError
from sinklens.lab.folders import STATE, forget, work_in
from sinklens.lab.language.domains import Domain, read_domains, read_sources
from sinklens.lab.language.figures import final_figures
from sinklens.lab.language.publish import TASK, publish, read_weights, round_to_half
from sinklens.lab.language.settings import LanguageSettings
from sinklens.lab.language.tokens import Streams, bpe_texts, encode, train_bpe
from sinklens.lab.language.training import LENGTH, build_model, curve_row, train
from sinklens.lab.running import move
from sinklens.results.files import write_atomically
from sinklens.results.progress import SILENT, Progress


def train_lm(
    data: str | Path | None,
    out: str | Path,
    *,
    python_stdlib: bool = False,
    device: str = "auto",
    checkpoint_every: int = 100,
    resume: bool = True,
    progress: Progress = SILENT,
    **settings: Any,
) -> Path:
    """Train a small Llama on domains of text and write it as a Hugging Face directory.

    `out` receives config.json, model.safetensors (half precision), the tokenizer's files, recipe.json
    (settings, data, versions, seconds), measured.json (the figures of `final_figures`), curve.csv (the training
    curve), README.md (the model card) and checkpoints/step-NNNNNN, the model at log-spaced steps from the
    untrained one on. On one machine with one number of threads and one version of the libraries, equal settings
    and texts give equal weights on a CPU, interrupted or not: killed at any moment, the same call goes on from
    the last checkpoint. A finished folder with the same settings is left as it is.

    Cost: the defaults take about an hour on one CPU thread (0.45 s a step), and a gigabyte of memory.

    Args:
        data: folder of domains, see `read_domains`; None if the standard library is all. A file SOURCES.md in it
            goes into the model card.
        out: the target folder; new, empty, or one that this function wrote to before.
        python_stdlib: add the running Python's standard library as domain "code".
        device: "auto" (CUDA if there is one), "cpu" or "cuda".
        checkpoint_every: steps between two checkpoints to go on from.
        resume: go on from a checkpoint, and leave a finished training; if False, start anew and replace both.
        progress: told how it goes on, with each row of the curve.
        **settings: fields of `LanguageSettings` other than `data`.

    Returns:
        The folder.

    Raises:
        InputError: if a setting is out of range, the texts cannot be used, there is no CUDA for `device="cuda"`, `out`
            holds something else, or the loss stops being finite.
        ResultError: if the checkpoint or the finished model in `out` has other settings or texts or is damaged, or the
            folder cannot be written.
    """
    asked = LanguageSettings(**settings)
    folder = None if data is None else Path(data)
    domains = read_domains(folder, python_stdlib=python_stdlib, held_out=asked.held_out)
    chosen = LanguageSettings(**settings, data={domain.name: domain.digest for domain in domains})
    target, place, finished = work_in(
        out, TASK, chosen.to_dict(), device=device, checkpoint_every=checkpoint_every, resume=resume
    )
    if finished:
        return target
    tokenizer_json = _tokenizer(target, domains, chosen.vocab)
    streams = encode(domains, tokenizer_json, max(chosen.longest, LENGTH))
    model, _, seconds = train(chosen, streams, tokenizer_json, target, place, checkpoint_every, progress)
    move(model, torch.device("cpu"))
    round_to_half(model)
    untrained = build_model(chosen)
    round_to_half(untrained)
    publish(
        target,
        model,
        tokenizer_json,
        chosen,
        final_figures(model, untrained, streams, chosen),
        _series(target, chosen, streams),
        command=_command(chosen, data is not None, python_stdlib),
        sources=read_sources(folder),
        data={domain.name: _facts(domain) for domain in domains},
        seconds=seconds,
        device=place.type,
    )
    forget(target)
    return target


def _tokenizer(target: Path, domains: list[Domain], vocab: int) -> str:
    """Train the tokenizer, or read the one an interrupted training began with."""
    path = (target / STATE).with_name("tokenizer.json")
    if not path.exists():
        write_atomically(path, train_bpe(bpe_texts(domains), vocab).encode())
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"The tokenizer {path} cannot be read ({error}); start anew with --restart.") from error


def _series(target: Path, settings: LanguageSettings, streams: list[Streams]) -> list[dict[str, float]]:
    """Measure the kept checkpoints from their files."""
    model, rows = build_model(settings), []
    for step in settings.kept:
        read_weights(target / "checkpoints" / f"step-{step:06d}", model)
        rows.append(curve_row(model, streams, step, settings.tokens(step), float("nan")))
    return rows


def _command(settings: LanguageSettings, data: bool, python_stdlib: bool) -> str:
    parts = ["sinklens lab train lm", "--data TEXTS" * data, "--python-stdlib" * python_stdlib, "--out DIR"]
    return " ".join(part for part in [*parts, settings.command] if part)


def _facts(domain: Domain) -> dict[str, Any]:
    return {
        "files": domain.files,
        "train_documents": len(domain.train),
        "held_out_documents": len(domain.held_out),
        "train_characters": sum(map(len, domain.train)),
        "held_out_characters": sum(map(len, domain.held_out)),
        "digest": domain.digest,
    }
