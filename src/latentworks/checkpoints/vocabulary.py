"""Vocabularies that weights come without: CLIP's, from open-clip-torch where that is installed, and what a folder holds."""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

__all__ = ["END", "clip_tokenizer", "open_clip_vocabulary", "read_tokenizer"]

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2  # lines of the file that CLIP uses


def open_clip_vocabulary() -> Path | None:
    """CLIP's list of merges, which open-clip-torch carries; the package is not imported. None if it is not installed."""
    spec = find_spec("open_clip")
    places = spec.submodule_search_locations if spec else None
    file = Path(places[0]) / "bpe_simple_vocab_16e6.txt.gz" if places else None
    return file if file is not None and file.is_file() else None


def read_tokenizer(path: Path) -> Tokenizer:
    """From a ``tokenizer.json``, CLIP's list of merges (``.txt.gz``), CLIP's ``vocab.json`` and ``merges.txt``, or BERT's ``vocab.txt``;
    or from a folder that has one of these, itself or in ``tokenizer``.

    Raises: ValueError naming what was looked for, or a file that cannot be read.
    """
    folders = [path, path / "tokenizer"]
    names = ("tokenizer.json", "vocab.json", "vocab.txt", "bpe_simple_vocab_16e6.txt.gz")
    found = [path] if path.is_file() else [folder / name for folder in folders for name in names if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{path} holds no vocabulary: a file or a folder is needed with one of {', '.join(names)}")
    file = found[0]
    try:
        if file.name.endswith(".gz"):
            lines = gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()
            return clip_tokenizer([(pair[0], pair[1]) for line in lines[1 : MERGES + 1] if len(pair := line.split()) == 2])
        if file.name == "vocab.json":
            lines = (file.parent / "merges.txt").read_text(encoding="utf-8").splitlines()
            merges = [(pair[0], pair[1]) for line in lines[1:] if len(pair := line.split()) == 2]
            return clip_tokenizer(merges, json.loads(file.read_text(encoding="utf-8")))
        if file.suffix == ".txt":
            return _bert(file.read_text(encoding="utf-8").splitlines())
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare exceptions
        raise ValueError(f"{file} cannot be read as a vocabulary: {' '.join(str(error).split())}") from None


def clip_tokenizer(merges: list[tuple[str, str]], vocabulary: dict[str, int] | None = None) -> Tokenizer:
    """Byte-pair encoding of lower-cased text, as CLIP has it: a start and an end token around, padded with the end token.

    ``vocabulary``: entry -> id; without it the 256 bytes, the bytes that end a word, the merges, start and end, in this order.
    """
    if vocabulary is None:
        alphabet = _bytes()
        entries = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges), START, END]
        vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START, END])
    start, end = vocabulary[START], vocabulary[END]
    tokenizer.post_processor = processors.RobertaProcessing((END, end), (START, start), trim_offsets=False, add_prefix_space=False)
    tokenizer.enable_padding(pad_id=end, pad_token=END)
    return tokenizer


def _bytes() -> list[str]:
    """A visible letter for each byte: visible ones stand for themselves and come first, the others follow from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]


def _bert(entries: list[str]) -> Tokenizer:
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.enable_padding(pad_id=vocabulary["[PAD]"], pad_token="[PAD]")
    return tokenizer
