"""Train a small language model with a sink, and go on where an interrupted training stopped."""

import csv
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from sinklens.lab.checkpoint import Checkpoint
from sinklens.lab.folders import STATE, refuse_other
from sinklens.lab.language.measure import mean_loss, sink_figures
from sinklens.lab.language.publish import write_model
from sinklens.lab.language.settings import CONTEXT, LanguageSettings
from sinklens.lab.language.tokens import BOS_ID, Streams, cut, draw
from sinklens.lab.optimizer import CLIP, adamw
from sinklens.lab.running import deterministic, finite, move
from sinklens.lab.streams import stream
from sinklens.results.files import write_atomically
from sinklens.results.progress import SILENT, Progress


def build_model(settings: LanguageSettings) -> LlamaForCausalLM:
    """Build a Llama with tied embeddings; its weights follow from `settings.seed` alone.

    The initialisation is Hugging Face's, N(0, 0.02). Torch's global random state is left as it was.
    """
    config = LlamaConfig(
        vocab_size=settings.vocab,
        hidden_size=settings.d_model,
        intermediate_size=settings.d_mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_base},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=None,
        pad_token_id=None,
        architectures=["LlamaForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def train(
    settings: LanguageSettings,
    streams: Sequence[Streams],
    tokenizer_json: str,
    out: Path,
    device: torch.device,
    checkpoint_every: int,
    progress: Progress = SILENT,
) -> tuple[LlamaForCausalLM, list[dict[str, float]], float]:
    """Run the steps that are left; return the model, the curve and the seconds that all steps took.

    Step `n` trains on sequences drawn from a stream addressed by the seed and `n`, so a checkpoint needs no
    state of a generator. The checkpoint holds the curve so far, and curve.csv and the kept checkpoints are
    written again by the steps that are repeated: they end as if nothing had happened. On CUDA the forward pass runs
    in bfloat16 where torch's autocast allows it, weights and optimiser stay in fp32.

    Raises:
        InputError: if the loss stops being finite.
        ResultError: if the checkpoint has other settings or is damaged, or a file cannot be written.
    """
    model = build_model(settings)
    move(model, device)
    optimizer = adamw(model, settings.lr, settings.weight_decay)
    done, seconds, curve, losses = 0, 0.0, list[dict[str, float]](), list[float]()
    if (out / STATE).exists():
        state = Checkpoint.load(out / STATE)
        refuse_other(settings.to_dict(), state.settings, f"The checkpoint {out / STATE} belongs to a training")
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
        done, seconds, curve, losses = state.step, state.seconds, state.curve, state.losses
    begin = time.monotonic() - seconds
    tokens = [float(settings.tokens(step + 1) - settings.tokens(step)) for step in range(settings.steps)]
    progress.begin("Training", sum(tokens), f"The curve goes into {out / 'curve.csv'}.")
    progress.skip(sum(tokens[:done]))
    with deterministic():
        for step in range(done, settings.steps + 1):
            # Everything that belongs to "after `step` steps" comes before step number `step` is run.
            if step % settings.measure_every == 0 or step == settings.steps:
                if not curve or curve[-1]["step"] < step:
                    recent = sum(losses) / len(losses) if losses else math.nan
                    curve.append(curve_row(model, streams, step, settings.tokens(step), recent))
                    losses = []
                write_atomically(out / "curve.csv", curve_csv(curve))
                progress.step(curve_line(curve[-1], settings.steps))
            if step in settings.kept:
                write_model(out / "checkpoints" / f"step-{step:06d}", model, tokenizer_json)
            if step % checkpoint_every == 0 or step == settings.steps:
                now = time.monotonic() - begin
                head = (settings.to_dict(), step, now, model.state_dict(), optimizer.state_dict(), curve, losses)
                Checkpoint(*head).save(out / STATE)
            if step < settings.steps:
                losses.append(_step(settings, model, optimizer, streams, step, device))
                progress.advance(tokens[step], f"loss {losses[-1]:.3f}")
    return model.eval(), curve, time.monotonic() - begin


def _step(
    settings: LanguageSettings,
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    streams: Sequence[Streams],
    step: int,
    device: torch.device,
) -> float:
    ids = draw(streams, *settings.shape(step), stream(settings.seed, "train", step)).to(device)
    model.train()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    loss = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(step)
    optimizer.step()
    return finite(loss.item(), step, settings.lr)


LENGTH, SEQUENCES = 64, 64


def curve_row(
    model: LlamaForCausalLM, streams: Sequence[Streams], step: int, tokens: int, train_loss: float
) -> dict[str, float]:
    """Measure the model on 64 held-out sequences of 64 tokens per domain.

    Returns:
        step, tokens, train_loss (mean since the last row), and for each domain, with its name and a dot before:
        loss (nats per token), heads (how many have a sink rate of at least 0.5), alpha_0 (the strongest
        head's mean), max_over_median (residual at BOS, of the layer where it is highest). Six digits, so that
        the same training gives the same file.

    Cost: a fifth of a second for the default model on one CPU thread.
    """
    row = {"step": float(step), "tokens": float(tokens), "train_loss": train_loss}
    for domain in streams:
        ids = cut(domain.held_out, LENGTH, SEQUENCES)
        figures = sink_figures(model, ids[:, :-1])
        row |= {
            f"{domain.name}.loss": mean_loss(model, ids),
            f"{domain.name}.heads": float((figures.rate >= 0.5).sum()),
            f"{domain.name}.alpha_0": float(figures.alpha.double().mean(0).max()),
            f"{domain.name}.max_over_median": figures.ratio,
        }
    return {name: float(f"{value:.6g}") if name != "tokens" else value for name, value in row.items()}


def curve_csv(rows: Sequence[dict[str, float]]) -> bytes:
    """Write the rows as CSV; NaN (a loss before the first step) becomes an empty cell."""
    text = io.StringIO()
    if rows:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([f"{value:.10g}" if value == value else "" for value in row.values()] for row in rows)
    return text.getvalue().encode()


def curve_line(row: dict[str, float], steps: int) -> str:
    """Say one row in words."""
    domains = sorted({name.split(".")[0] for name in row if "." in name})
    parts = [
        f"{name}: loss {row[f'{name}.loss']:.3f}, {row[f'{name}.heads']:.0f} sink heads, "
        f"alpha_0 up to {row[f'{name}.alpha_0']:.2f}, max/median {row[f'{name}.max_over_median']:.0f}"
        for name in domains
    ]
    return f"Step {row['step']:.0f}/{steps}, {row['tokens'] / 1e6:.2f} M tokens | {' | '.join(parts)}"
