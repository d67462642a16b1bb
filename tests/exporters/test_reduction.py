"""Token reduction inside the graph is what PyTorch computes: the same tokens are kept, the logits agree."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from families import CORPUS, VOCAB, save_tiny
from transformers import AutoModelForCausalLM

import edgeslim
from edgeslim.errors import BundleError, EvaluationError, ExportError, ParityError
from edgeslim.evaluate.bundle import session_scorer
from edgeslim.exporters import export_checkpoint, reduced_parity
from edgeslim.exporters.graph import build_graph
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.drop_kept_positions import DropKeptPositions
from edgeslim.exporters.passes.reduce_tokens import ReduceTokens
from edgeslim.exporters.passes.tied_embedding import TiedEmbedding
from edgeslim.exporters.tokens.operators import inline_reduction
from edgeslim.runtime.generate import generate
from edgeslim.runtime.library import kernel_library
from edgeslim.runtime.manifest import MANIFEST, Manifest
from edgeslim.runtime.session import KEPT_POSITIONS, GenaiSession, OrtSession, open_session
from edgeslim.tokens.plan import BEFORE_ALL, METHODS, METRICS, SCAN_METRICS, ReductionPlan
from edgeslim.tokens.prefill import extend, reduced_prefill
from edgeslim.tokens.prefill import generate as generate_in_torch

MODELS = Path(__file__).parents[2] / "examples" / "models"
SCANS, TRANSFORMERS = ("mamba", "mamba2"), ("llama", "mistral", "qwen2", "qwen3")
needs_library = pytest.mark.skipif(kernel_library() is None, reason="edgeslim was installed without a compiler")
KERNEL_FORMS = [("fp32", "dense"), ("int8", "dense"), ("fp32", "kernel"), ("int8", "kernel"), ("int4", "kernel")]


def plan_for(method="utrc", layers=(0, 1), ratio=0.7, **options):
    if method == "truncate":
        layers = (BEFORE_ALL,)
    return ReductionPlan(method=method, layers=layers, ratios=(ratio,) * len(layers), **options)


def metric_of(family):
    return "clip" if "mamba" in family else "attention"


def prompt(batch, count, vocabulary=VOCAB, seed=0):
    return np.random.default_rng([seed, count]).integers(vocabulary, size=(batch, count))


class Workshop:
    """Checkpoints, their models in PyTorch and scoring graphs with a plan, each made once."""

    def __init__(self, root):
        self.root, self.models, self.sessions, self.made = root, {}, {}, 0

    def checkpoint(self, name):
        if (MODELS / name).is_dir():
            return MODELS / name
        folder = self.root / name
        return folder if folder.is_dir() else save_tiny(folder, name)

    def model(self, name):
        if name not in self.models:
            loaded = AutoModelForCausalLM.from_pretrained(self.checkpoint(name), dtype=torch.float32)
            self.models[name] = loaded.eval()
        return self.models[name]

    def graph(self, name, plan):
        model = build_graph(self.checkpoint(name))
        depth = self.model(name).config.num_hidden_layers
        return run_passes(model, [TiedEmbedding(), ReduceTokens(plan, depth)])

    def session(self, name, plan, kernels=False):
        """A session of the scoring graph, not lowered; what a whole export does beyond is tested apart.

        Its operators run by their function bodies, or by the library's kernels.
        """
        if (name, plan) not in self.sessions:
            self.made += 1
            folder = self.root / f"graph-{self.made}"
            folder.mkdir()
            shutil.copy(self.checkpoint(name) / "config.json", folder)
            ir.save(self.graph(name, plan), folder / "scoring.onnx")
            self.sessions = {(name, plan): {False: OrtSession(folder, graph="scoring.onnx", threads=1)}}
            (folder / MANIFEST).write_text(json.dumps({"lowering": "kernel"}))
            self.sessions[name, plan][True] = OrtSession(folder, graph="scoring.onnx", threads=1)
        return self.sessions[name, plan][kernels]

    def reduced_checkpoint(self, name, plan):
        """A copy of the checkpoint whose config.json asks for the plan."""
        folder = self.root / f"reduced-{name}-{abs(hash(plan))}"
        if not folder.is_dir():
            shutil.copytree(self.checkpoint(name), folder)
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "edgeslim": {"reduction": plan.to_json()}}))
        return folder

    def bundle(self, name, plan, weights="fp32", lowering="dense"):
        folder = self.root / f"bundle-{name}-{abs(hash(plan))}-{weights}-{lowering}"
        if not folder.is_dir():
            folder.mkdir()
            export_checkpoint(self.reduced_checkpoint(name, plan), folder, weights=weights, lowering=lowering)
        return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("reduction"))


def assert_equal_to_torch(shop, name, plan, tokens):
    """Kept positions are identical, logits within 1e-4, of the prompt and of tokens read after it."""
    session, model = shop.session(name, plan), shop.model(name)
    expected = reduced_prefill(model, torch.from_numpy(tokens), plan)
    session.reset(len(tokens))
    logits, positions = session.feed_kept(tokens)
    assert positions.tolist() == expected.positions.tolist()
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4, rtol=0)
    following = tokens[:, :1]
    logits, positions = session.feed_kept(following)
    np.testing.assert_allclose(
        logits, extend(model, expected.cache, torch.from_numpy(following))[0].numpy(), atol=1e-4, rtol=0
    )
    assert positions.tolist() == [[0]] * len(tokens)


def assert_kernels_equal_bodies(shop, name, plan, tokens):
    """Kept positions are identical, and so are logits but for sums that were taken in another order.

    After the prompt one token follows, then three: of one sequence, since onnxruntime's attention takes no more then.
    """
    kernels, bodies = (shop.session(name, plan, kernels) for kernels in (True, False))
    assert kernels.library.path is not None and bodies.library.path is None
    for piece in (tokens, tokens[:, :1], *([tokens[:, :3]] if len(tokens) == 1 else [])):
        if piece is tokens:
            kernels.reset(len(tokens))
            bodies.reset(len(tokens))
        (found, positions), (expected, expected_positions) = kernels.feed_kept(piece), bodies.feed_kept(piece)
        assert positions.tolist() == expected_positions.tolist()
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@needs_library
@pytest.mark.parametrize("family", [*SCANS, *TRANSFORMERS])
@pytest.mark.parametrize("method", METHODS)
def test_kernels_of_every_method_keep_what_bodies_keep_in_every_family(shop, family, method):
    plan = plan_for(method, metric=metric_of(family))
    for tokens in (prompt(1, 1), prompt(1, 2), prompt(1, 7), prompt(2, 40), prompt(1, 200)):
        assert_kernels_equal_bodies(shop, family, plan, tokens)


@needs_library
@pytest.mark.parametrize(
    ("family", "metric"),
    [*(("mamba2", m) for m in SCAN_METRICS), *(("qwen2", m) for m in METRICS), ("mistral", "attention")],
)
def test_kernels_of_every_metric_keep_what_bodies_keep(shop, family, metric):
    assert_kernels_equal_bodies(shop, family, plan_for(metric=metric), prompt(2, 90))


@needs_library
@pytest.mark.parametrize(
    "options",
    [
        {"q": 0.0, "hidden": "merge", "residual": "prune"},
        {"q": 1.0, "hidden": "prune", "residual": "hybrid", "merge": "mean"},
        {"protect_last": 30},
        {"protect_first": True, "protect_last": 0, "ratio": 0.5},
        {"min_tokens": 41},
    ],
)
@pytest.mark.parametrize("method", ["utrc", "evit", "ltmp", "random"])
@pytest.mark.parametrize("family", ["mamba2", "llama"])
def test_kernels_of_every_option_keep_what_bodies_keep(shop, family, method, options):
    for count in (40, 41):
        plan = plan_for(method, metric=metric_of(family), **options)
        assert_kernels_equal_bodies(shop, family, plan, prompt(2, count))


@pytest.mark.parametrize("family", [*SCANS, *TRANSFORMERS])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_pytorch_in_every_family(shop, family, method):
    plan = plan_for(method, metric=metric_of(family))
    for tokens in (prompt(1, 1), prompt(1, 2), prompt(1, 7), prompt(2, 40)):
        assert_equal_to_torch(shop, family, plan, tokens)


@pytest.mark.parametrize("metric", SCAN_METRICS)
def test_every_metric_of_scans_equals_pytorch(shop, metric):
    assert_equal_to_torch(shop, "mamba2", plan_for(metric=metric), prompt(2, 33))


@pytest.mark.parametrize("metric", ["attention", "key-norm", "clip", "l2"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_every_metric_of_attention_equals_pytorch(shop, family, metric):
    assert_equal_to_torch(shop, family, plan_for(metric=metric), prompt(2, 33))


@pytest.mark.parametrize(
    "options",
    [
        {"q": 0.0},
        {"q": 1.0},
        {"hidden": "merge", "residual": "prune"},
        {"hidden": "prune", "residual": "hybrid", "merge": "mean"},
        {"protect_last": 0},
        {"protect_last": 30},
        {"protect_first": True, "protect_last": 2},
        {"ratio": 0.5, "merge": "mean"},
    ],
)
@pytest.mark.parametrize("family", ["mamba2", "llama"])
def test_every_option_equals_pytorch(shop, family, options):
    assert_equal_to_torch(shop, family, plan_for(metric=metric_of(family), **options), prompt(2, 37))


@pytest.mark.parametrize("method", ["evit", "ltmp", "random", "truncate"])
def test_baselines_protect_the_first_token_where_asked(shop, method):
    plan = plan_for(method, protect_first=True, protect_last=1, seed=7)
    assert_equal_to_torch(shop, "mamba2", plan, prompt(2, 31))


@pytest.mark.parametrize("family", ["mamba", "mamba2", "qwen2"])
def test_prompts_shorter_than_the_minimum_are_left_as_they_are(shop, family):
    plan = plan_for(metric=metric_of(family), min_tokens=30)
    for tokens in (prompt(1, 1), prompt(2, 29), prompt(2, 30), prompt(1, 50)):
        assert_equal_to_torch(shop, family, plan, tokens)
    assert [plan.kept(count) for count in (29, 30, 50)] == [(29, 29), (21, 15), (35, 25)]


@pytest.mark.parametrize("layers", [(2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("family", ["mamba", "qwen3"])
def test_any_layers_reduce_the_last_one_included(shop, family, layers):
    assert_equal_to_torch(shop, family, plan_for(layers=layers, metric=metric_of(family)), prompt(1, 50))


@pytest.mark.parametrize("method", ["random", "truncate", "official-code"])
def test_equal_tokens_are_no_trouble_to_rules_that_do_not_look(shop, method):
    assert_equal_to_torch(shop, "mamba2", plan_for(method), np.full((1, 30), 5))


@pytest.mark.parametrize("family", ["mamba2", "mistral"])
def test_several_tokens_after_a_prompt_are_not_reduced(shop, family):
    plan, tokens = plan_for(metric=metric_of(family)), prompt(1, 60)
    session, model = shop.session(family, plan), shop.model(family)
    first, second = tokens[:, :40], tokens[:, 40:]
    cache = reduced_prefill(model, torch.from_numpy(first), plan).cache
    session.reset()
    session.feed_kept(first)
    logits = session.feed_all(second)
    np.testing.assert_allclose(logits, extend(model, cache, torch.from_numpy(second))[0].numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["tiny-mamba2", "tiny-llama"])
def test_the_bundled_models_keep_the_same_tokens_as_pytorch(shop, name):
    plan = plan_for(layers=(2, 4, 6), ratio=0.8, metric=metric_of(name))
    for count in (1, 2, 7, 64):
        assert_equal_to_torch(shop, name, plan, prompt(1, count, 4096))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.iterdir() if (path / "config.json").is_file()))
def test_all_bundled_models_keep_the_same_tokens_as_pytorch_by_every_method(shop, name, method):
    model = shop.model(name)
    third = model.config.num_hidden_layers // 4
    plan = plan_for(method, layers=(third, 2 * third, 3 * third), ratio=0.8, metric=metric_of(model.config.model_type))
    for count in (1, 2, 7, 64, 511, 1024):
        assert_equal_to_torch(shop, name, plan, prompt(1, count, model.config.vocab_size))


@pytest.mark.parametrize("family", [*SCANS, *TRANSFORMERS])
def test_generated_tokens_are_pytorchs_after_the_same_reduction(shop, family):
    plan = plan_for(metric=metric_of(family))
    bundle, tokens = shop.bundle(family, plan), prompt(1, 60)
    expected = generate_in_torch(shop.model(family), torch.from_numpy(tokens), plan, 20)[0].tolist()
    engines = (OrtSession, GenaiSession) if family in SCANS else (OrtSession,)
    for engine in engines:
        assert list(generate(engine(bundle), tokens[0].tolist(), 20)) == expected


@pytest.mark.parametrize(("weights", "lowering"), KERNEL_FORMS)
@pytest.mark.parametrize("family", ["mamba2", "qwen2"])
def test_every_lowering_reduces(shop, family, weights, lowering):
    """Each export compares itself with PyTorch on the same rounded weights, and fails where kept tokens differ."""
    manifest = Manifest.read(shop.bundle(family, plan_for(metric=metric_of(family)), weights, lowering))

    assert (
        manifest.parity["kept_tokens"] == 48
    )  # of 96: 29 are removed, then 21 of 67, at most half of those unprotected
    assert max(manifest.parity["max_abs_error"].values()) <= 1e-4 * manifest.parity["logit_scale"]
    assert manifest.recipe["reduction"]["layers"] == [0, 1]


def operators(path):
    return [(node.domain, node.op_type) for node in ir.load(path).graph]


def inputs_of(path, op_type):
    """How many inputs each node of a type has that are there."""
    return [sum(v is not None for v in node.inputs) for node in ir.load(path).graph if node.op_type == op_type]


def test_kernels_keep_what_is_fused_into_them(shop):
    """Only the sum behind a reducing layer's last product is apart: gates, norms and scans stay in their operators."""
    reduced = shop.bundle("mamba2", plan_for(layers=(1,)), "int8", "kernel") / "model.onnx"
    dense_folder = shop.root / "dense-mamba2"
    dense_folder.mkdir()
    export_checkpoint(shop.checkpoint("mamba2"), dense_folder, weights="int8", lowering="kernel")
    dense = dense_folder / "model.onnx"

    for name in ("StateSpaceScan", "CausalConv", "PackedLinear"):
        assert operators(reduced).count(("edgeslim", name)) == operators(dense).count(("edgeslim", name)) > 0
    fewer = [a - b for a, b in zip(inputs_of(dense, "PackedLinear"), inputs_of(reduced, "PackedLinear"), strict=True)]
    assert sorted(fewer) == [0] * (len(fewer) - 1) + [1]


def test_kernels_of_attention_take_the_positions(shop):
    path = shop.bundle("qwen2", plan_for(layers=(0,), metric="key-norm"), "int8", "kernel") / "model.onnx"
    names = [(node.domain, node.op_type, node.overload) for node in ir.load(path).graph]

    assert names.count(("edgeslim", "GroupQueryAttention", "")) == 1  # before the reduction
    assert ("com.microsoft", "RotaryEmbedding", "") in names  # windows, which the kernel counts in slots


def test_kernels_of_attention_take_norms_beside_the_positions(shop):
    path = shop.bundle("qwen3", plan_for(layers=(0,), metric="key-norm"), "int8", "kernel") / "model.onnx"
    graph = ir.load(path).graph
    overloads = [node.overload for node in graph if (node.domain, node.op_type) == ("edgeslim", "GroupQueryAttention")]

    assert overloads == ["", "positions_norms", "positions_norms"]  # the reduction reads the first layer's normed keys


def test_the_generation_graph_of_scans_carries_no_positions(shop):
    plan = plan_for()
    model = shop.graph("mamba2", plan)
    inline_reduction(model)
    run_passes(model, [DropKeptPositions()])
    ifs = [node for node in model.graph if node.op_type == "If"]

    assert KEPT_POSITIONS not in {value.name for value in model.graph.outputs}
    assert [len(node.outputs) for node in ifs] == [1, 1, 1]  # the counts; the sum at two layers
    assert all(len(node.attributes["then_branch"].as_graph().outputs) == len(node.outputs) for node in ifs)


def test_putting_the_reduction_in_twice_changes_nothing(shop):
    model = shop.graph("mamba2", plan_for())
    before = [node.name for node in model.graph]
    run_passes(model, [ReduceTokens(plan_for(), 3)])

    assert [node.name for node in model.graph] == before


def test_layers_of_a_transformer_keep_as_many_keys_as_the_plan_says(shop):
    plan = plan_for(metric="key-norm")
    session = OrtSession(shop.bundle("llama", plan))
    session.feed(prompt(1, 60))

    assert session.cache_lengths == (60, *plan.kept(60))
    assert session.state_bytes == sum(session.cache_lengths) * 2 * 2 * 16 * 4  # keys and values, 2 heads of 16, float32


def test_the_engine_that_cannot_hold_different_lengths_is_not_chosen(shop):
    bundle = shop.bundle("llama", plan_for(metric="key-norm"))

    assert Manifest.read(bundle).engines == ("ort",)
    assert not (bundle / "genai_config.json").exists()
    assert isinstance(open_session(bundle), OrtSession)
    with pytest.raises(BundleError, match=r"cannot hold caches of different lengths.*use engine 'ort'"):
        open_session(bundle, "genai")


def test_scans_still_run_in_every_engine(shop):
    bundle = shop.bundle("mamba2", plan_for())

    assert Manifest.read(bundle).engines == ("genai", "ort")
    assert isinstance(open_session(bundle), GenaiSession)


def test_session_options_of_a_bundle_without_genai_config_come_from_the_manifest(shop):
    bundle = shop.bundle("qwen2", plan_for(metric="attention"), "int8", "kernel")

    assert not (bundle / "genai_config.json").exists()
    session = OrtSession(bundle)
    assert session.config.session_options["custom_ops_library"] == session.library.inside


@pytest.mark.parametrize("family", ["mamba", "mamba2", "llama", "mistral"])
def test_the_suite_scores_a_bundle_as_pytorch_scores_the_same_checkpoint(shop, family, tmp_path):
    """Reduced and unreduced: that of a bundle is the bundle itself, its first token fed alone."""
    plan = plan_for(metric=metric_of(family))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(CORPUS) * 4)
    options = {"suite": "reduction", "text": str(text), "seqlen": 48, "seeds": 2, "windows": 3, "prompts": 2}
    found = asdict(edgeslim.eval(shop.bundle(family, plan), **options))
    expected = asdict(edgeslim.eval(shop.reduced_checkpoint(family, plan), **options))

    assert expected["suffix_ratio"] != 1
    assert expected["coverage"] < 0.8
    assert len(expected["recall"]) == 10
    for name in expected.keys() - {"seeds", "plan", "recall", "dense_recall"}:
        assert found.pop(name) == pytest.approx(expected.pop(name), rel=1e-4)
    assert found == expected


def test_a_bundle_of_a_model_that_recalls_is_scored_as_pytorch_scores_it(shop):
    """A random drop loses part of the lists; the bundle's own unreduced way knows nearly all of them."""
    plan = plan_for("random", layers=(3,), ratio=0.6)
    name = "recall-mamba2"
    found, expected = (
        edgeslim.eval(model, suite="reduction", seeds=1, prompts=3)
        for model in (shop.bundle(name, plan), shop.reduced_checkpoint(name, plan))
    )

    assert found == expected
    assert found.suffix_perplexity is None  # 65 characters: no text
    assert 0.2 < np.mean([task.accuracy for task in found.recall]) < 0.95
    assert np.mean([task.accuracy for task in found.dense_recall]) > 0.98


def test_a_bundle_that_reduces_nothing_has_nothing_to_compare(bundle):
    with pytest.raises(EvaluationError, match="does not reduce its prompts; write a plan with `edgeslim reduce`"):
        edgeslim.eval(bundle("mamba2"), suite="reduction")


def test_perplexity_goes_through_the_kept_positions_only(shop):
    plan, windows = plan_for(), prompt(2, 41)
    session = OrtSession(shop.bundle("mamba2", plan), graph="scoring.onnx", threads=1)
    found = session_scorer(session)(windows)
    expected = reduced_prefill(shop.model("mamba2"), torch.from_numpy(windows[:, :-1]), plan)
    targets = torch.from_numpy(windows).gather(1, expected.positions + 1)
    nll = -expected.logits.log_softmax(-1).gather(2, targets[..., None])[..., 0]

    assert found.shape == (2, plan.kept(40)[-1])
    np.testing.assert_allclose(found, nll.numpy(), atol=1e-4)
    session.reset(2)
    with pytest.raises(BundleError, match="reduces its prompts"):
        session.feed_all(windows)


def test_a_family_without_reduction_is_refused(shop, tmp_path):
    checkpoint = shop.reduced_checkpoint("gpt2", plan_for())

    with pytest.raises(ExportError, match="its type is 'gpt2'; the graph can do so for mamba, mamba2, llama"):
        export_checkpoint(checkpoint, tmp_path, weights="fp32", lowering="dense")


def test_a_graph_that_keeps_other_tokens_is_refused(shop, tmp_path, monkeypatch):
    plan = plan_for("random", seed=1)
    monkeypatch.setattr(reduced_parity, "PROMPTS", 1)
    bundle = shop.bundle("mamba2", plan)

    with pytest.raises(ParityError, match="other tokens are kept than PyTorch keeps"):
        reduced_parity.check_reduced_parity(bundle, shop.checkpoint("mamba2"), plan_for("random", seed=2))
