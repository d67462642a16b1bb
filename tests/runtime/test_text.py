"""A bundle's text goes to tokens and back whole, whichever tokenizer is installed."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeslim.errors import BundleError, RuntimeUnavailable
from edgeslim.runtime import text as text_module
from edgeslim.runtime.native_text import is_text_available
from edgeslim.runtime.text import Detokenizer, TextCodec, leading_ids

MULTIBYTE = "é ü 漢字 日本語 👍🏽 done."


def use(library, monkeypatch):
    """Let a codec find that library alone."""
    monkeypatch.setattr(text_module, "find_spec", lambda name: library == name or None)
    monkeypatch.setattr(text_module, "is_text_available", lambda: library == "extensions")


@pytest.fixture(params=["tokenizers", "extensions", "genai"])
def codec(request, llama, monkeypatch):
    """The bundle's tokenizer by each library in turn."""
    if request.param == "extensions" and not is_text_available():
        pytest.skip("needs the native runtime and onnxruntime-extensions")
    use(request.param, monkeypatch)
    return TextCodec(llama.bundle)


def test_text_survives_encoding_and_decoding(codec):
    assert codec.decode(codec.encode(MULTIBYTE)) == MULTIBYTE


def test_streamed_pieces_join_to_the_text_and_never_break_a_character(codec):
    pieces = list(codec.detokenizer().stream(codec.encode(MULTIBYTE)))
    assert "".join(pieces) == MULTIBYTE
    assert "\ufffd" not in "".join(pieces)
    assert "漢" in pieces


def test_a_character_cut_off_at_the_end_is_left_out(codec):
    ids = codec.encode("ok 👍")
    assert "".join(codec.detokenizer().stream(ids[:-1])) == "ok "


def test_a_character_waits_for_its_last_byte(codec):
    ids = codec.encode("字")
    detokenizer = codec.detokenizer()
    pieces = [detokenizer.push(token) for token in ids]
    assert pieces == [""] * (len(ids) - 1) + ["字"]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufffd<"), max_size=30))
def test_any_text_streams_back_unchanged(codec, sample):  # but \0, which ends a C string
    assert "".join(codec.detokenizer().stream(codec.encode(sample))) == sample


def test_bytes_that_are_no_text_come_out_as_the_replacement_character():
    decode = lambda ids: bytes(ids).decode("utf-8", errors="replace")  # noqa: E731
    assert "".join(Detokenizer(decode).stream([0x80, ord("a"), 0xC3, 0xA9])) == "\ufffdaé"


def test_special_tokens_are_not_shown(codec):
    assert codec.decode([*codec.encode("end"), 2]) == "end"


def test_a_prompt_goes_through_the_chat_template(codec):
    expected = codec.encode("<|user|>hi</s><|assistant|>")
    assert 2 in expected  # the template's </s> is one special token
    assert codec.prompt_tokens("hi") == expected


def test_a_raw_prompt_does_not(codec):
    assert codec.prompt_tokens("hi", raw=True) == codec.encode("hi")


def test_without_a_template_the_prompt_is_plain(bundle_copy):
    (bundle_copy / "chat_template.jinja").unlink()
    codec = TextCodec(bundle_copy)
    assert not codec.has_chat_template
    assert codec.prompt_tokens("hi") == codec.encode("hi")


def test_a_template_with_a_fault_is_one_clear_error(bundle_copy):
    (bundle_copy / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(BundleError, match="chat template cannot be rendered"):
        TextCodec(bundle_copy).prompt_tokens("hi")


def test_a_template_without_genai_names_the_way_out(llama, monkeypatch):
    monkeypatch.setattr(text_module, "is_installed", lambda engine: False)
    with pytest.raises(RuntimeUnavailable, match=r'pip install "edgeslim\[cpu\]", or use --raw'):
        TextCodec(llama.bundle).prompt_tokens("hi")


def test_both_libraries_put_the_same_special_tokens_first(llama, tmp_path, monkeypatch):
    from tokenizers import Tokenizer, processors

    bundle = Path(shutil.copytree(llama.bundle, tmp_path / "bundle"))
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    leading = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), leading])
    tokenizer.save(str(bundle / "tokenizer.json"))
    ours = TextCodec(bundle)
    use("genai", monkeypatch)
    genai = TextCodec(bundle)
    assert ours.encode("hello") == genai.encode("hello")
    assert ours.encode("hello")[0] == 1
    assert ours.encode("hello", special=False) == genai.encode("hello", special=False) == ours.encode("hello")[1:]


def test_no_post_processor_means_no_leading_tokens():
    assert leading_ids(None) == []
    assert leading_ids({"type": "ByteLevel"}) == []


def test_a_bundle_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(BundleError, match=r"it has no tokenizer\.json"):
        TextCodec(tmp_path)


def test_a_damaged_tokenizer_is_named(bundle_copy):
    (bundle_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read"):
        TextCodec(bundle_copy)
