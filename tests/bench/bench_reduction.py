"""What each way of reducing tokens costs, beside the others, as one table: methods x cuts x models.

    python tests/bench/bench_reduction.py examples/models/* -o out/reduction

writes `reduction.md` and `reduction.json` into the output folder, and a JSON line a case to stdout. Cuts are counted
FLOPs of a prefill as long as the prompts that are scored. Every method reduces at the layers of UTRC's default, the
rows of the paper's own setting at the paper's layers. A model of few token ids is not scored on text; one that
recalls next to nothing dense is not scored on recall with its tokens reduced. Finished cases are kept in
`cases.jsonl` and not run again.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgeslim.checkpoint import Checkpoint, quiet_transformers
from edgeslim.corpus import standard_library_text
from edgeslim.evaluate.recall import RecallTask
from edgeslim.evaluate.reduction_suite import PROMPT, RELIABLE, Amount, Scores, compare, score, tasks_for
from edgeslim.evaluate.torch_prompts import prompt_models, text_tokens
from edgeslim.recipe import ReduceRecipe
from edgeslim.reducer import plan_reduction, read_config
from edgeslim.tokens.plan import ReductionPlan
from edgeslim.tokens.schedule import default_layers

PAPER = {
    "protect_last": 0,
    "min_tokens": 1,
    "metric": "clip",
    "hidden": "hybrid",
    "residual": "merge",
    "merge": "pairwise",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "random drop": {"method": "random"},
    "left truncation": {"method": "truncate"},
    "EViT": {"method": "evit", "metric": "clip"},
    "PuMer": {"method": "pumer"},
    "LTMP-like": {"method": "ltmp", "metric": "clip", "q": 0.5},
    "released code": {"method": "official-code"},
    **{f"UTRC paper, q = {q}": {"method": "utrc", **PAPER, "q": q} for q in (0.0, 0.2, 0.5, 0.8, 1.0)},
    "UTRC default": {"method": "utrc"},
}
WORTH_REDUCING = 0.5
"""Dense recall of the best task below which reduced recall says nothing at all."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One model ready to be scored; `tokens` None: no text."""

    model: Any
    config: dict[str, Any]
    tokens: Any
    tasks: list[RecallTask]
    amount: Amount

    def scores(self, text_plan: ReductionPlan | None, recall_plan: ReductionPlan | None, recall: bool) -> Scores:
        """Score text and recall, each with the plan for its prompt length."""
        text = None
        if self.tokens is not None:
            text = score(prompt_models(self.model, text_plan), self.tokens, [], self.amount).text
        if not recall:
            return Scores(text=text, hits=[])
        hits = score(prompt_models(self.model, recall_plan), None, self.tasks, self.amount).hits
        return Scores(text=text, hits=hits)

    def plan(self, options: dict[str, Any], cut: float, tokens: int) -> ReductionPlan:
        """Return the plan for prompts of `tokens`."""

        def planned(layers: tuple[int, ...] = (), **given: Any) -> ReductionPlan:
            return plan_reduction(
                self.config, ReduceRecipe(**given, layers=layers, flops=cut, prompt_tokens=tokens)
            ).plan

        if options["method"] == "truncate":
            return planned(**options)
        if options.items() >= PAPER.items():
            return planned(default_layers(self.config["num_hidden_layers"]), **options)
        return planned(planned().layers, **options)


def main() -> None:
    """Score every case that is not finished, then write the table."""
    args = arguments()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    journal = args.output / "cases.jsonl"
    done = {}
    if journal.is_file():
        done = {_key(case): case for case in map(json.loads, journal.read_text().splitlines())}
    cases = []
    for folder in args.models:
        for case in run_model(folder, args, done):
            if _key(case) not in done:
                with journal.open("a") as file:
                    file.write(json.dumps(case) + "\n")
            cases.append(case)
            print(json.dumps(_short(case)), flush=True)
    (args.output / "reduction.json").write_text(json.dumps(cases, indent=1) + "\n")
    (args.output / "reduction.md").write_text(markdown(cases))


def run_model(folder: Path, args: argparse.Namespace, done: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    """Yield every case of one model, those in `done` without scoring them again."""
    wanted = [(label, cut) for cut in args.cuts for label in args.settings]
    if all((folder.name, label, cut) in done for label, cut in wanted):
        yield from (done[folder.name, label, cut] for label, cut in wanted)
        return
    bench = open_bench(folder, args)
    dense = bench.scores(None, None, recall=True)
    recall = max(hits.mean() for hits in dense.hits) >= WORTH_REDUCING
    context = bench.amount.seqlen - bench.amount.suffix
    for number, (label, cut) in enumerate(wanted):
        if (folder.name, label, cut) in done:
            yield done[folder.name, label, cut]
            continue
        print(f"{folder.name}: {number + 1}/{len(wanted)} {label} at {cut:.0%}", file=sys.stderr, flush=True)
        text_plan, recall_plan = (bench.plan(SETTINGS[label], cut, tokens) for tokens in (context, PROMPT))
        reduced = bench.scores(text_plan, recall_plan, recall)
        tasks, partner = (bench.tasks, dense) if recall else ([], replace(dense, hits=[]))
        result = compare(reduced, partner, tasks, bench.amount)
        yield {
            "model": folder.name,
            "setting": label,
            "cut": cut,
            "flops_cut_counted": recall_plan.flops_cut_counted,
            "best_dense_recall": float(max(hits.mean() for hits in dense.hits)),
            **asdict(result),
            "plan": recall_plan.to_json(),
        }


def open_bench(folder: Path, args: argparse.Namespace) -> Bench:
    """Load the model in `folder` and what it is scored on."""
    checkpoint, config = Checkpoint.open(folder), read_config(folder)
    text = args.text.read_text() if args.text else standard_library_text("heldout").text
    with quiet_transformers():
        return Bench(
            model=checkpoint.load(),
            config=config,
            tokens=text_tokens(checkpoint, config, text),
            tasks=tasks_for(config, tuple(args.items)),
            amount=Amount(windows=args.windows, prompts=args.prompts, seeds=tuple(range(args.seeds))),
        )


def markdown(cases: Sequence[dict[str, Any]]) -> str:
    """Return the cases as Markdown: a text table and a recall table a model."""
    parts = []
    for model in dict.fromkeys(case["model"] for case in cases):
        mine = [case for case in cases if case["model"] == model]
        parts.append(f"## {model}\n")
        if mine[0]["suffix_perplexity"] is not None:
            parts.append(_text_table(mine))
        if mine[0]["recall"]:
            parts += [_recall_table(mine, kind, items) for kind, items in _kinds(mine[0])]
        else:
            parts.append(f"Recall: not trained for it; dense at most {mine[0]['best_dense_recall']:.0%}.\n")
    return "\n".join(parts)


def _text_table(cases: Sequence[dict[str, Any]]) -> str:
    first = cases[0]
    lines = [
        f"Text: {first['windows']} windows, context {first['seqlen'] - first['suffix']} reduced, "
        f"{first['suffix']} tokens after it scored; dense suffix perplexity {_with_interval(first, 'dense_suffix')}.\n",
        "| cut | method | suffix perplexity / dense | kept perplexity | dense on the same tokens | coverage |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        low, high = case["suffix_ratio_interval"]
        lines.append(
            f"| {case['cut']:.0%} | {case['setting']} | {case['suffix_ratio']:.4f} ({low:.4f} … {high:.4f}) "
            f"| {case['kept_perplexity']:.1f} | {case['dense_kept_perplexity']:.1f} | {case['coverage']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _recall_table(cases: Sequence[dict[str, Any]], kind: str, items: int) -> str:
    dense = _of(cases[0]["dense_recall"], kind, items)
    weak = [f"{task['distance']}" for task in dense if task["accuracy"] < RELIABLE]
    name = {"keyvalue": f"value of one of {items} keys", "copy": f"copy of {items}"}[kind]
    note = f" Dense is below {RELIABLE:.0%} at {', '.join(weak)}: these columns prove nothing." if weak else ""
    lines = [
        f"Recall, {name}, {dense[0]['prompts']} prompts of {PROMPT} tokens, by filler between list and question "
        f"(chance {dense[0]['chance']:.0%}).{note}\n",
        "| cut | method | " + " | ".join(str(task["distance"]) for task in dense) + " | mean |",
        "|---|---|" + "---|" * (len(dense) + 1),
        f"| 0% | dense | {_accuracies(dense)} |",
    ]
    lines += [
        f"| {case['cut']:.0%} | {case['setting']} | {_accuracies(_of(case['recall'], kind, items))} |" for case in cases
    ]
    return "\n".join(lines) + "\n"


def _accuracies(tasks: Sequence[dict[str, Any]]) -> str:
    cells = [f"{task['accuracy']:.1%} ({task['low']:.0%} … {task['high']:.0%})" for task in tasks]
    mean = sum(task["accuracy"] for task in tasks) / len(tasks)
    return " | ".join([*cells, f"{mean:.1%}"])


def _of(tasks: Sequence[dict[str, Any]], kind: str, items: int) -> list[dict[str, Any]]:
    return [task for task in tasks if (task["kind"], task["items"]) == (kind, items)]


def _kinds(case: dict[str, Any]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((task["kind"], task["items"]) for task in case["recall"]))


def _with_interval(case: dict[str, Any], name: str) -> str:
    low, high = case[f"{name}_interval"]
    return f"{case[f'{name}_perplexity']:.1f} ({low:.1f} … {high:.1f})"


def _key(case: dict[str, Any]) -> tuple[str, str, float]:
    return case["model"], case["setting"], case["cut"]


def _short(case: dict[str, Any]) -> dict[str, Any]:
    """Return the case in one line: means over distances."""
    short = {name: case[name] for name in ("model", "setting", "cut", "flops_cut_counted")}
    for name in ("suffix_ratio", "kept_perplexity", "dense_kept_perplexity", "coverage"):
        if case[name] is not None:
            short[name] = round(case[name], 4)
    for kind, items in _kinds(case):
        for name in ("recall", "dense_recall"):
            found = _of(case[name], kind, items)
            short[f"{name} {kind} {items}"] = round(sum(task["accuracy"] for task in found) / len(found), 4)
    return short


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="checkpoint folders")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--cuts", nargs="+", type=float, default=[0.1, 0.2, 0.3])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--items", nargs="+", type=int, default=[4, 8], help="items of the lists to recall")
    parser.add_argument("--text", type=Path, help="text to score (default: the bundled held-out text)")
    parser.add_argument("--windows", type=int, default=32, help="text windows a seed")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of each recall task a seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
