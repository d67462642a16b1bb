"""Text by the native runtime and onnxruntime-extensions: the tokens and the text of the `tokenizers` library."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgeslim.errors import BundleError, RecipeError, RuntimeUnavailable
from edgeslim.runtime.native_library import onnxruntime_library
from edgeslim.runtime.native_text import EXTENSIONS_VARIABLE, NativeTokenizer, extensions_library, is_text_available

pytestmark = pytest.mark.skipif(not is_text_available(), reason="needs the native runtime and onnxruntime-extensions")

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "models"
CORPUS = (ROOT / "README.md").read_text().splitlines()
TEXTS = (
    "",
    "a",
    "Hello, world",
    "naïve café — 漢字 🙂👍🏽",
    "x" * 300,
    "don't we'll I'M 12345 a1b2",
    "line\r\nline\n\n\tend",
    " lead and trail ",
)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level() -> Tokenizer:
    """As Llama 3 and Qwen have it: bytes as letters, words cut by a rule, a token that begins a text."""
    made = Tokenizer(models.BPE(ignore_merges=True))
    rule = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [rule, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    special, letters = ["<|begin|>", "<|end|>"], pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=letters, show_progress=False),
    )
    begin = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return made


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral have it: words begin with a space, numbers are digits, bytes of what is in no word.

    The extensions do not join digits, with each other or with the space before them, even where a tokenizer says so.
    """
    words = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="never"), digits])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False))
    content = json.loads(words.to_str())
    content["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    content["added_tokens"] = content["added_tokens"][:3]
    content["pre_tokenizer"] = None
    made = Tokenizer.from_str(json.dumps(content))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def unigram() -> Tokenizer:
    """As T5 has it: likely pieces, and a token that ends a text."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made


KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "unigram": unigram}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with the tokenizer of each kind."""
    folders = {}
    for kind, make in KINDS.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        make().save(str(folders[kind] / "tokenizer.json"))
    return folders


def reference(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-mamba2", "recall-mamba", "recall-mamba2"])
def test_bundled_models_read_and_write_text_as_the_tokenizers_library_does(model):
    ours, theirs = NativeTokenizer(EXAMPLES / model), reference(EXAMPLES / model)
    for text in (*TEXTS, "<|endoftext|> within", "two  spaces"):
        tokens = theirs.encode(text).ids
        assert ours.encode(text) == tokens, text
        assert ours.decode(tokens) == theirs.decode(tokens), text


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_every_kind_of_tokenizer_are_the_librarys(kinds, kind):
    ours, theirs = NativeTokenizer(kinds[kind]), reference(kinds[kind])
    for text in TEXTS:
        if kind == "unigram" and text != " ".join(text.split()):
            continue  # the extensions take spaces in a row, at the end and line ends for one
        assert ours.encode(text) == theirs.encode(text).ids, text
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_every_kind_of_tokenizer_is_the_librarys(kinds, kind):
    ours, theirs = NativeTokenizer(kinds[kind]), reference(kinds[kind])
    for text in TEXTS:
        tokens = theirs.encode(text).ids
        assert ours.decode(tokens) == theirs.decode(tokens), text


@pytest.mark.parametrize("kind", KINDS)
def test_random_tokens_stream_as_whole_characters_and_join_to_the_text(kinds, kind):
    ours, draw = NativeTokenizer(kinds[kind]), random.Random(5)
    size = reference(kinds[kind]).get_vocab_size()
    for _ in range(20):
        tokens = [draw.randrange(size) for _ in range(60)]
        decoder = ours.decoder()
        pieces = [decoder.push(token) for token in tokens]  # what is no UTF-8 would not decode
        assert "".join(pieces) == ours.decode(tokens)


def test_a_character_of_several_tokens_comes_whole_with_its_last():
    ours = NativeTokenizer(EXAMPLES / "tiny-llama")
    tokens, decoder = ours.encode("漢"), ours.decoder()
    assert len(tokens) > 1
    assert [decoder.push(token) for token in tokens] == [""] * (len(tokens) - 1) + ["漢"]


def test_decoders_of_one_tokenizer_do_not_mix():
    ours = NativeTokenizer(EXAMPLES / "tiny-llama")
    first, second = ours.encode("漢字"), ours.encode("🙂é")
    one, other = ours.decoder(), ours.decoder()
    pieces = [(one.push(a), other.push(b)) for a, b in zip(first, second, strict=False)]
    assert "".join(a for a, _ in pieces) == ours.decode(first[: len(pieces)])
    assert "".join(b for _, b in pieces) == ours.decode(second[: len(pieces)])


def test_special_tokens_and_those_of_no_tokenizer_have_no_text(kinds):
    ours = NativeTokenizer(kinds["byte_fallback"])
    hello = ours.encode("hello", special=False)
    assert ours.decode([1, *hello, 2]) == ours.decode([*hello, 100_000]) == "hello"


def test_what_cannot_be_text_or_a_token_is_refused():
    ours = NativeTokenizer(EXAMPLES / "tiny-llama")
    with pytest.raises(RecipeError, match="zero character"):
        ours.encode("a\0b")
    with pytest.raises(RecipeError, match="token ids must be at least 0, got -1"):
        ours.decode([-1])


def one_piece(part: str) -> str:
    """A tokenizer.json of one piece, with `part` beside its model."""
    return '{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}, ' + part + "}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"it has no tokenizer\.json"),
        ("{", r"tokenizer\.json: not valid JSON"),
        ("{}", "its model is ''; BPE and Unigram are read"),
        ('{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}', r"the id of 'a' must be in \[0, 1\)"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0, "b": 2}, "merges": []}}', r"the id of 'b' must be in \[0, 2\)"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}', r"the id of 'a' must be in \[0, 1\)"),
        ('{"model": {"type": "WordPiece"}}', "its model is 'WordPiece'; BPE and Unigram are read"),
        ('{"model": {"type": "BPE"}}', r"tokenizer\.json: model\.vocab must be an object"),
        ('{"model": {"type": "BPE", "vocab": {}}}', r"tokenizer\.json: model\.merges must be an array"),
        (
            '{"model": {"type": "BPE", "vocab": {}, "merges": ["\\r"]}}',
            r"model\.merges: entry 0 must be a pair of tokens",
        ),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": ["# #"]}}', r'begin one with .#. as \["#", \.\.\.\]'),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": [["a"]]}}', r"onnxruntime-extensions says: .*out of range"),
        ('{"model": {"type": "Unigram"}}', r"model\.vocab must be an array"),
        ('{"model": {"type": "Unigram", "vocab": [["a", 0], ["b"]]}}', "entry 1 must be a token and its score"),
        (
            one_piece('"added_tokens": [{"id": 0}]'),
            "added_tokens: entry 0 must be a token with its id, content and special",
        ),
        (one_piece('"normalizer": {"precompiled_charsmap": "AA=="}'), "its precompiled_charsmap is none"),
        (
            one_piece('"normalizer": {"normalizers": [{"precompiled_charsmap": "AAAAAGE="}]}'),
            "precompiled_charsmap is none",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_one_clear_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=message):
        NativeTokenizer(tmp_path)


def test_a_tokenizer_outside_of_the_bundle_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").symlink_to(EXAMPLES / "tiny-llama" / "tokenizer.json")
    with pytest.raises(BundleError, match="a link that leaves the bundle"):
        NativeTokenizer(tmp_path)


def test_without_the_extensions_the_error_says_what_to_name(tmp_path):
    with pytest.raises(RuntimeUnavailable, match=r"onnxruntime-extensions does not load: .*nowhere"):
        NativeTokenizer(EXAMPLES / "tiny-llama", extensions=tmp_path / "nowhere.so")
    with pytest.raises(RuntimeUnavailable, match="not onnxruntime-extensions: it has no OrtxGetAPIVersion"):
        NativeTokenizer(EXAMPLES / "tiny-llama", extensions=onnxruntime_library())


def test_the_environment_may_name_the_extensions(monkeypatch, tmp_path):
    monkeypatch.setenv(EXTENSIONS_VARIABLE, str(tmp_path / "libortextensions.so"))
    assert extensions_library() == tmp_path / "libortextensions.so"
