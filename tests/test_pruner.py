"""Checkpoints pruned block by block: exact, resumable, loadable by transformers."""

import hashlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, save_tiny
from safetensors.torch import load_file, save_file
from torch import nn

from edgeslim.calibration import Calibration
from edgeslim.checkpoint import Checkpoint
from edgeslim.errors import CheckpointError, OutputError, RecipeError
from edgeslim.pruner import REPORT, PruneJob, PruneReport, prune_checkpoint
from edgeslim.pruning.methods import PruneConfig, prune_matrix
from edgeslim.pruning.patterns import NM
from edgeslim.pruning.statistics import InputStatistics

TOKENS = torch.randint(300, (10, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # models this small only lose by a second one


def _job(**changes: Any) -> PruneJob:
    config = changes.pop("config", PruneConfig(method="wanda"))
    return PruneJob(config=config, calibration=Calibration(tokens=TOKENS, description="random tokens"), **changes)


def _prune(folder: Path, output: Path, **changes: Any) -> PruneReport:
    return prune_checkpoint(Checkpoint.open(folder), output, _job(**changes))


def _digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_prunes_its_linears_and_nothing_else(tmp_path: Path, family: str) -> None:
    folder = save_tiny(tmp_path / "dense", family, dtype=torch.bfloat16)
    report = _prune(folder, tmp_path / "pruned", config=PruneConfig(method="mrp", effort="fast"))
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "pruned"))
    linears = {f"{_bare(linear.name)}.weight": linear for linear in report.linears}
    assert len(linears) == len(report.linears)
    assert linears.keys() == {_bare(name) for name in before if _is_linear(name)}
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        if _bare(name) in linears:
            assert float((after[name] == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
            assert 0 < linears[_bare(name)].relative_error < 1
        else:
            assert torch.equal(after[name], tensor)


_LINEARS = re.compile(
    r"""layers\.\d+\.(?!.*\.(x_proj|dt_proj)\.)  # in a block, and none of Mamba-1's small ones
    .*(_proj|_linear|\blinear|\.w\d|_adapter_list\.\d+\.\d  # Llama and most, Granite, Zamba2, LFM2
    |query_key_value|dense(_\w+)?|fc\d)\.weight$  # GPT-NeoX, Phi, OPT
    |h\.\d+\..*\.c_\w+\.weight$  # GPT-2""",
    re.VERBOSE,
)


def _is_linear(name: str) -> bool:
    return _LINEARS.search(name) is not None


def _bare(name: str) -> str:
    """The name without that of the base model, which a family may call otherwise in its files."""
    return re.sub(r"^(model|backbone|transformer|gpt_neox)\.", "", name)


def test_transformers_loads_the_result_and_ignores_our_key(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_tiny(tmp_path / "dense", "llama")
    _prune(folder, tmp_path / "pruned", config=PruneConfig(pattern=NM(n=2, m=4), method="sparsegpt"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    AutoTokenizer.from_pretrained(tmp_path / "pruned")
    groups = model.model.layers[2].mlp.down_proj.weight.reshape(64, -1, 4)
    assert int((groups != 0).sum(-1).max()) == 2
    recipe = json.loads((tmp_path / "pruned" / "config.json").read_text())["edgeslim"]["prune"]
    assert recipe["method"] == "sparsegpt" and recipe["pattern"] == "2:4" and recipe["samples"] == 10
    report = json.loads((tmp_path / "pruned" / REPORT).read_text())
    assert len(report["linears"]) == 21 and report["sparsity"] == 0.5


def test_the_pattern_of_a_transposed_linear_runs_along_its_inputs(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "gpt2")
    _prune(folder, tmp_path / "pruned", config=PruneConfig(method="wanda", pattern=NM(n=1, m=4)))
    weight = load_file(tmp_path / "pruned" / "model.safetensors")["transformer.h.1.mlp.c_fc.weight"]  # [in, out]
    assert torch.equal((weight.T.reshape(weight.shape[1], -1, 4) != 0).sum(-1), torch.ones(weight.shape[1], 16).long())


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba2"])
@pytest.mark.parametrize("target", ["pruned", "dense"])
def test_streaming_gives_the_weights_of_a_plain_walk_over_the_whole_model(
    tmp_path: Path, family: str, target: Any
) -> None:
    config = PruneConfig(method="mrp", effort="fast", target=target, target_strength=0.5)
    folder = save_tiny(tmp_path / "dense", family)
    _prune(folder, tmp_path / "pruned", config=config)
    model, dense = (Checkpoint.open(folder).load() for _ in range(2))
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    names = {module: name for name, module in model.named_modules()}
    for block in blocks:
        inputs = {linear: _inputs(model, linear) for linear in block.modules() if isinstance(linear, nn.Linear)}
        for linear, x in inputs.items():
            original = _inputs(dense, dense.get_submodule(names[linear])) if config.needs_cross_moment else None
            linear.weight.copy_(prune_matrix(linear.weight, InputStatistics.of(x, original), config).weight)
    after = load_file(tmp_path / "pruned" / "model.safetensors")
    for linear, name in names.items():
        if f"{name}.weight" in after and isinstance(linear, nn.Linear) and name != "lm_head":
            torch.testing.assert_close(after[f"{name}.weight"], linear.weight, rtol=1e-3, atol=1e-4)


def _inputs(model: nn.Module, linear: nn.Module) -> torch.Tensor:
    seen = []
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    model(TOKENS)
    handle.remove()
    return torch.cat(seen)


def test_sequential_pruning_lets_later_linears_see_what_earlier_ones_became(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "llama")
    together, after = (
        _prune(folder, tmp_path / name, config=PruneConfig(effort="fast"), sequential=sequential)
        for name, sequential in (("together", False), ("after", True))
    )
    errors = [{linear.name: linear.relative_error for linear in report.linears} for report in (together, after)]
    first = "model.layers.0.self_attn."
    assert errors[0][first + "q_proj"] == errors[1][first + "q_proj"]
    assert errors[0][first + "o_proj"] != errors[1][first + "o_proj"]


@pytest.mark.parametrize("stop_after", [0, 1, 2])
@pytest.mark.parametrize("target", ["pruned", "dense"])
def test_an_interrupted_prune_resumes_to_the_same_bits(tmp_path: Path, stop_after: int, target: Any) -> None:
    folder = save_tiny(tmp_path / "dense", "llama", dtype=torch.bfloat16, shard_size="60KB")
    job = _job(config=PruneConfig(effort="fast", target=target), sequential=True)
    checkpoint = Checkpoint.open(folder)
    whole = prune_checkpoint(checkpoint, tmp_path / "whole", job)

    def stop(done: int, total: int, label: str) -> None:
        if done == stop_after and label.startswith("pruning"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(checkpoint, tmp_path / "resumed", job, progress=stop)
    assert not (tmp_path / "resumed").exists()
    labels: list[str] = []
    resumed = prune_checkpoint(checkpoint, tmp_path / "resumed", job, progress=lambda *step: labels.append(step[2]))
    assert sum(label.startswith("pruning") for label in labels) == 3 - stop_after
    assert _digest(tmp_path / "resumed") == _digest(tmp_path / "whole")
    assert resumed.linears == whole.linears


@pytest.mark.parametrize("writes", [0, 3, 9])
def test_kill_9_between_two_writes_loses_nothing(tmp_path: Path, writes: int) -> None:
    folder = save_tiny(tmp_path / "dense", "mamba2")
    _prune(folder, tmp_path / "whole")
    child = os.fork()
    if child == 0:
        _kill_after(writes)
        _prune(folder, tmp_path / "resumed")
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == (signal.SIGKILL if writes < 6 else 0) or writes >= 6
    if not (tmp_path / "resumed").exists():
        _prune(folder, tmp_path / "resumed")
    assert _digest(tmp_path / "resumed") == _digest(tmp_path / "whole")


def _kill_after(writes: int) -> None:
    """Kill this process before its write number `writes`."""
    from edgeslim import pruner

    write, count = pruner.write_weight, iter(range(writes, -1, -1))

    def counted(entry: Any, weight: torch.Tensor) -> None:
        if next(count) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        write(entry, weight)

    pruner.write_weight = counted


def test_changed_arguments_refuse_to_resume_and_say_which(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "llama")

    def stop(done: int, total: int, label: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(Checkpoint.open(folder), tmp_path / "out", _job(), progress=stop)
    with pytest.raises(OutputError, match=r"method was 'wanda', now 'magnitude'.*--restart"):
        _prune(folder, tmp_path / "out", config=PruneConfig(method="magnitude"))
    report = prune_checkpoint(
        Checkpoint.open(folder), tmp_path / "out", _job(config=PruneConfig(method="magnitude")), restart=True
    )
    assert report.method == "magnitude"


def test_include_and_exclude_choose_by_name(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "llama")
    report = _prune(folder, tmp_path / "out", include=("*.mlp.*",), exclude=("model.layers.1.*", "*.up_proj"))
    assert {linear.name for linear in report.linears} == {
        f"model.layers.{index}.mlp.{name}" for index in (0, 2) for name in ("gate_proj", "down_proj")
    }


def test_a_name_pattern_that_matches_nothing_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "llama")
    with pytest.raises(RecipeError, match=r"--exclude .*donw_proj.* did you mean 'down_proj'"):
        _prune(folder, tmp_path / "out", exclude=("*.donw_proj",))


def test_excluding_everything_is_an_error(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "llama")
    with pytest.raises(RecipeError, match="nothing was pruned"):
        _prune(folder, tmp_path / "out", exclude=("*",))


def test_small_matrices_of_mamba_are_left_alone_unless_named(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=8)
    MambaForCausalLM(config).save_pretrained(tmp_path / "dense")
    plain = _prune(tmp_path / "dense", tmp_path / "plain")
    named = _prune(tmp_path / "dense", tmp_path / "named", include=("*.x_proj",))
    assert {linear.name.rpartition(".")[2] for linear in plain.linears} == {"in_proj", "out_proj"}
    assert {linear.name.rpartition(".")[2] for linear in named.linears} == {"x_proj"}
    with pytest.raises(CheckpointError, match=r"dt_proj: the block's forward never calls it"):
        _prune(tmp_path / "dense", tmp_path / "step", include=("*.dt_proj",))


def test_fused_experts_are_refused_by_name(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="experts"):
        _prune(tmp_path / "dense", tmp_path / "out")


@pytest.mark.parametrize("target", ["pruned", "dense"])
def test_experts_are_pruned_one_by_one(tmp_path: Path, target: Any) -> None:
    folder = save_tiny(tmp_path / "dense", "jamba")
    config = PruneConfig(method="mrp", effort="fast", target=target)
    report = _prune(folder, tmp_path / "out", config=config, include=("*.experts.*",))
    weights = load_file(tmp_path / "out" / "model.safetensors")

    assert len(report.linears) == 4 * 3
    for linear in report.linears:
        assert float((weights[f"{linear.name}.weight"] == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
        assert 0 < linear.relative_error < 1
    assert torch.isfinite(Checkpoint.open(tmp_path / "out").load()(TOKENS[:1]).logits).all()


def test_an_expert_that_no_token_goes_to_keeps_its_largest_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "jamba", num_experts_per_tok=1)
    before = load_file(folder / "model.safetensors")
    router = before["model.layers.1.feed_forward.router.weight"]
    router[1], router[2:] = -router[0], 0  # a token goes to the first where its score is positive, else to the second
    save_file(before, folder / "model.safetensors", {"format": "pt"})
    _prune(folder, tmp_path / "out", config=PruneConfig(method="mrp", effort="fast"), include=("*.experts.3.*",))
    name = "model.layers.1.feed_forward.experts.3.up_proj.weight"
    after = load_file(tmp_path / "out" / "model.safetensors")[name]

    kept = before[name].abs().topk(32, dim=1).indices.sort(dim=1).values
    assert torch.equal(after.nonzero()[:, 1].view(-1, 32), kept)


def test_the_output_must_not_be_the_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "llama")
    with pytest.raises(OutputError, match="is the model itself"):
        prune_checkpoint(Checkpoint.open(folder), folder, _job(), force=True)
    assert (folder / "model.safetensors").exists()
