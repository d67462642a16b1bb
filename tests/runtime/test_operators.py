"""Time by operator comes from onnxruntime's own profile; who ran what is told apart."""

import json

import pytest

from edgeslim import api
from edgeslim.errors import BundleError, RecipeError
from edgeslim.runtime.graph_file import read_graph
from edgeslim.runtime.operators import operator_times, parse_profile, placement, summarise


def node(name: str, op: str, at: int, took: int, provider: str = "CPUExecutionProvider", size: int = 0) -> dict:
    args = {"op_name": op, "provider": provider, "parameter_size": str(size)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": took, "args": args}


def call(at: int, took: int) -> dict:
    return {"cat": "Session", "name": "model_run", "ts": at, "dur": took, "args": {}}


# The forms of onnxruntime 1.17 and later: fences, starts and fused nodes beside what counts.
PROFILE = json.dumps(
    [
        {"cat": "Session", "name": "session_initialization", "ts": 5, "dur": 100, "args": {}},
        node("early", "MatMul", 50, 9),
        call(200, 100),
        node("TRTKernel_graph_main_0", "TRTKernel_graph_main", 210, 40, "TensorrtExecutionProvider"),
        {"cat": "Node", "name": "TRTKernel_graph_main_0_fence_before", "ts": 205, "dur": 1, "args": {"op_name": "x"}},
        node("cast", "Cast", 260, 3, "CUDAExecutionProvider"),
        node("gather", "Gather", 265, 5, size=64),
        call(400, 50),
        node("TRTKernel_graph_main_0", "TRTKernel_graph_main", 410, 20, "TensorrtExecutionProvider"),
        node("gather", "Gather", 440, 7, size=64),
    ]
)


def test_nodes_are_given_to_the_call_that_they_ran_in():
    events = parse_profile(PROFILE)
    assert [(e.name, e.call) for e in events] == [
        ("TRTKernel_graph_main_0", 0),
        ("cast", 0),
        ("gather", 0),
        ("TRTKernel_graph_main_0", 1),
        ("gather", 1),
    ]


def test_times_are_means_by_phase_kind_and_provider():
    prefill, decode = parse_profile(PROFILE), ["prefill", "decode"]
    found = summarise(prefill, decode)
    assert [(o.phase, o.op, o.ms, o.calls, o.weight_bytes) for o in found] == [
        ("prefill", "TRTKernel_graph_main", 0.04, 1, 0),
        ("prefill", "Gather", 0.005, 1, 64),
        ("prefill", "Cast", 0.003, 1, 0),
        ("decode", "TRTKernel_graph_main", 0.02, 1, 0),
        ("decode", "Gather", 0.007, 1, 64),
    ]
    assert {o.provider for o in found if o.op.startswith("TRT")} == {"TensorrtExecutionProvider"}


def test_calls_without_a_phase_do_not_count():
    assert {o.phase for o in summarise(parse_profile(PROFILE), [None, "decode"])} == {"decode"}


def test_placement_counts_the_nodes_of_each_provider_in_the_last_call():
    assert placement(parse_profile(PROFILE)) == {"CPUExecutionProvider": 1, "TensorrtExecutionProvider": 1}


def test_a_text_that_is_no_profile_is_refused():
    with pytest.raises(BundleError, match="profile is not JSON"):
        parse_profile("[{]")


def test_a_real_bundle_gives_every_operator_of_its_graph(exported):
    found = operator_times(exported.bundle, prompt_tokens=6, new_tokens=5, threads=1)
    assert {o.phase for o in found} == {"prefill", "decode"} and all(o.ms >= 0 for o in found)
    products = sum(o.calls for o in found if o.phase == "decode" and "MatMul" in o.op)
    graph = read_graph(exported.bundle / "model.onnx")
    assert products == sum("MatMul" in n.op_type for n in graph.nodes) > 4
    assert {o.provider for o in found} == {"CPUExecutionProvider"}
    times = [o.ms for o in found if o.phase == "decode"]
    assert times == sorted(times, reverse=True)


def test_a_profile_with_operators_is_a_profile_with_one_key_more(llama):
    options = {"prompt_tokens": 4, "new_tokens": 4, "repeats": 1, "threads": 1}
    value = json.loads(json.dumps(api.profile(llama.bundle, operators=True, **options).to_json()))
    assert value["decode_tok_s_p50"] > 0
    assert {"op", "phase", "calls", "ms", "weight_bytes", "provider"} == set(value["operators"][0])


def test_operators_of_another_device_are_refused(llama):
    with pytest.raises(RecipeError, match="operators are timed on this machine only, got device 'ssh://pi'"):
        api.profile(llama.bundle, operators=True, device="ssh://pi")
