# SPDX-License-Identifier: Apache-2.0
"""Prose and names use plain contemporary English: a word list of what they must not contain, with replacements."""

import ast
import bisect
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Files and folders that the word list applies to.
CLEAN: tuple[str, ...] = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "benchmarks",
    "docs",
    "examples",
    "models",
    "pipelines",
    "tests",
    "tfq",
)
# Names of these words, also as a part of a longer name.
NAMES = {
    "anew": "again, from_scratch",
    "beside": "next_to, paired_with",
    "codes": "quantized_values",
    "mend": "fix",
    "mended": "fixed",
    "told": "message, progress, report",
    "untold": "unreported",
    "wanted": "expected",
}
KNOWN_NAMES = re.compile(r"(custom|exit|op|operator)_codes")


class Entry(NamedTuple):
    """A pattern, what to write instead, a sentence that it matches, and one that it does not match."""

    pattern: str
    instead: str
    old: str
    plain: str


ENTRIES = [
    Entry(r"\b(un)?told\b", "reported, printed, known, distinguished", "All of it is told.", "All of it is reported."),
    Entry(r"\banew\b", "again", "It begins anew.", "It begins again in a new process."),
    Entry(r"\bbeside\b", "next to, in addition to", "It is beside the file.", "Besides, it is next to the file."),
    Entry(
        r"\bbehind (a|an|its?|the|them|this|each|every|it|removed)\b", "after", "behind the layer", "after the layer"
    ),
    Entry(r"\bmend(s|ed|ing)?\b", "fix", "It mends the model.", "We recommend it."),
    Entry(r"\bto be had\b", "available", "It is not to be had here.", "It is not available here."),
    Entry(r"\bbut for\b", "except", "all but for the last", "all except the last"),
    Entry(r"\bin the place of\b", "instead of", "in the place of the op", "instead of the op"),
    Entry(r"\btak(e|es|en|ing) the place of\b", "replace", "It takes the place of it.", "It replaces it."),
    Entry(r"\bheld against\b", "compared with", "held against the file", "compared with the file"),
    Entry(
        r"\b(is|are|be|was|were) held to\b", "must satisfy, is limited to", "It is held to a rule.", "It must be so."
    ),
    Entry(
        r"\bhold(s)? (for|of) (a|all|both|each|every|it|no|the|them|this|what)\b",
        "applies to",
        "It holds for all.",
        "It applies to all.",
    ),
    Entry(r"\bknows? no\b", "does not support, has no", "tfmot knows no others", "tfmot does not know others"),
    Entry(
        r"\bof (its|their) own(?=[,.;:)]|$| (and|are|but|for|if|in|is|or|that|to|when|where|which|with)\b)",
        "its own ..., separate",
        "a process of its own",
        "its own process",
    ),
    Entry(r"\bin turn\b", "alternately, one after another, (nothing)", "timed in turn", "in turnover"),
    Entry(r"\bnext to nothing\b", "almost zero", "It costs next to nothing.", "It is next to the file."),
    Entry(r"\b(there|where)(of|in|to|upon|with|from)\b", "of it, in it, ...", "the parts thereof", "its parts there"),
    Entry(
        r"\b(lest|whilst|upon|hitherto|whence|thence|albeit|naught|nought|amongst)\b",
        "plain words",
        "lest it fail",
        "so that it does not fail",
    ),
    Entry(r"\b(has|have|had) not(?=[.,;:)]|$)", "does not have", "an op that TFLite has not.", "It has not changed."),
    Entry(r"\bthat there (is|are) not\b", "missing", "a number that there is not", "a number is missing"),
    Entry(
        r", for (he|it|nothing|she|there|they|tfmot|TFLite)\b",
        "because",
        "This ends, for it fails.",
        "for them, for its users",
    ),
    Entry(
        r"(?<!there )\bis no (?!doubt|different|guarantee|less|longer|more|need|such)[a-z]",
        "is not a",
        "This is no flatbuffer.",
        "There is no file, and it is no longer used.",
    ),
    Entry(
        r"(?<!there )\bare no (?!different|less|longer|more|such)[a-z]",
        "are not",
        "outputs that are no codes",
        "There are no files, and they are no longer used.",
    ),
    Entry(r"\bwhoever\b", "the person who, (nothing)", "for whoever reads it", "for readers"),
    Entry(
        r"\bwhatever (can|comes|gave|made|ran|reads?|takes?|trained|wrote)\b",
        "anything that, regardless of what",
        "whatever trained it",
        "whatever its size",
    ),
    Entry(r"\bsuch a one\b", "one", "such a one fails", "such a model fails"),
    Entry(r"\b(and|or) the like\b", "and similar ...", "files and the like", "files and the likelihood"),
    Entry(r"\bnothing worse\b", "(rewrite)", "nothing worse than that", "nothing else"),
    Entry(
        r"\bgo(es|ing)? on where\b|\bgoes on\b",
        "resumes, continues",
        "It goes on where it was.",
        "It depends on where it was.",
    ),
    Entry(r"\bwanted\b", "expected, requested", "wanted int8, came float32", "expected int8, got float32"),
    Entry(
        r"(?<!custom )(?<!error )(?<!exit )(?<!language )"
        r"(?<!op )(?<!operator )(?<!return )(?<!status )\bcodes\b",
        "quantized values",
        "codes of int8",
        "the exit codes",
    ),
    Entry(r"\breals\b", "real values", "It turns codes into reals.", "real values"),
    Entry(r"\bshares? of\b", "fraction of", "a share of the values", "a fraction of the values"),
    Entry(r"\bdoubt(s|ful)?\b", "possible problem", "a doubt about the data", "a possible problem of the data"),
    Entry(r"\bspar(es|ed|ing)\b", "avoids, saves", "It spares a copy.", "It saves a sparse copy."),
    Entry(r"\bmake(s)? of (it|them|this|these)\b", "turn it into", "what TFLite makes of it", "It makes one of it."),
    Entry(r"\binto a form\b", "rewrites as", "It brings the op into a form that it knows.", "into a format"),
    Entry(r"\bas (it|they) likes?\b", "optionally, may", "It adds callbacks as it likes.", "It may add callbacks."),
    Entry(r"\ball the same\b", "anyway, still", "It runs all the same.", "All of the same size."),
    Entry(r"\bby way of\b", "through", "by way of ONNX", "in a way of this kind"),
    Entry(
        r"\bsays? (a class|classes|one class|no class)\b",
        "predicts a class",
        "outputs that say a class",
        "outputs that predict a class",
    ),
    Entry(r"\bgiv(e|es|en|ing) out\b", "outputs", "what the op gives out", "what the op outputs"),
    Entry(r"\bfirst so many\b", "first N", "the first so many examples", "the first examples, so many of them"),
    Entry(r"\bmany a\b", "many", "many a model", "many models"),
    Entry(r"\bstands there\b|\bstood\b", "is, was", "What stood there is gone.", "It is understood."),
    Entry(
        r"(^|[.!?] )Of (?!course\b)\w",
        "(begin with the subject, or with 'If')",
        "Of MODEL, the layers.",
        "Of course. One of them.",
    ),
    Entry(r"(^|[.!?] )Within, ", "inside", "Within, it is int8.", "Within the model, it is int8."),
]
DOCSTRING_STARTS = re.compile(r"(What|Whether|How|Plain|Within|Of|Raises|Puts|Gives|Makes|That)\b")


class Text(NamedTuple):
    """Prose of a file, on one line; `start` is what it begins: a "function", "property" or nothing."""

    line: int
    text: str
    start: str = ""


def on_one_line(text: str) -> str:
    return " ".join(text.split())


def strings(nodes: list[ast.AST]) -> Iterator[Text]:
    """Yield the string literals and docstrings of all nodes of a tree; expressions in f-strings are "{}"."""
    starts, inside = {}, set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node, clean=False):
            decorators = {ast.unparse(item) for item in node.decorator_list}
            is_property = any(item.endswith("property") for item in decorators)
            starts[node.body[0].value] = "property" if is_property else "function"
        if isinstance(node, ast.JoinedStr):
            inside |= {item for part in ast.walk(node) for item in ast.iter_child_nodes(part)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = [str(item.value) if isinstance(item, ast.Constant) else "{}" for item in node.values]
            yield Text(node.lineno, on_one_line("".join(parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield Text(node.lineno, on_one_line(node.value), starts.get(node, ""))


def comments(source: str) -> Iterator[Text]:
    """Yield comments; those on consecutive lines are one text."""
    line, words = 0, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if words and token.start[0] != line + len(words):
                yield Text(line, " ".join(words))
                words = []
            line = token.start[0] if not words else line
            words.append(token.string.lstrip("#: "))
    if words:
        yield Text(line, " ".join(words))


def paragraphs(markdown: str) -> Iterator[Text]:
    """Yield the paragraphs, table rows and list items of a document, without its blocks of code."""
    line, words, in_code = 0, [], False
    for number, content in enumerate([*markdown.splitlines(), ""], 1):
        fence = content.lstrip().startswith("```")
        in_code ^= fence
        separate = not content.strip() or fence or content.lstrip().startswith(("|", "- ", "* ", "#"))
        if separate and words:
            yield Text(line, " ".join(words))
            words = []
        if content.strip() and not in_code and not fence:
            line = number if not words else line
            words.append(content.strip())


def old_words(texts: Iterator[Text]) -> list[str]:
    """Return line, match and replacement of everything that the word list forbids."""
    texts, result = list(texts), []
    for place, text in enumerate(texts):
        if text.start == "function" or (text.start == "property" and not text.text.startswith("Whether")):
            match = DOCSTRING_STARTS.match(text.text)
            if match:
                message = f"docstring begins with {match[0]!r}: write 'Return ...', 'Check whether ...'"
                result.append((place, f"{text.line}: {message}"))
    # One search in all texts, a line each, takes less time than one in each of them.
    lines = "\n".join(text.text for text in texts)
    ends = list(itertools.accumulate(len(text.text) + 1 for text in texts))
    for entry in ENTRIES:
        # The case matters only where the pattern has capitals, as at the beginning of a sentence.
        flags = re.IGNORECASE if entry.pattern.replace("TFLite", "").islower() else 0
        for match in re.finditer(entry.pattern, lines, flags | re.MULTILINE):
            place = bisect.bisect_right(ends, match.start())
            line, text, _ = texts[place]
            result.append((place, f"{line}: {match[0]!r}: write {entry.instead}: {text[:100]!r}"))
    return [message for _, message in sorted(result)]


def old_names(nodes: list[ast.AST]) -> list[str]:
    """Return line, name and replacement of names that are defined here."""
    result = []
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name, line = node.name, node.lineno
        elif isinstance(node, ast.arg):
            name, line = node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name, line = node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name, line = node.attr, node.lineno
        else:
            continue
        words = [word for word in KNOWN_NAMES.sub("", name.lower()).split("_") if word in NAMES]
        result += [f"{line}: {name}: use {NAMES[word]}" for word in words]
    return result


def in_python(source: str) -> list[str]:
    """Return everything that the word list forbids in strings, comments and names."""
    nodes = list(ast.walk(ast.parse(source)))
    return [*old_words(itertools.chain(strings(nodes), comments(source))), *old_names(nodes)]


def offences(path: Path) -> list[str]:
    content = path.read_text()
    result = old_words(paragraphs(content)) if path.suffix == ".md" else in_python(content)
    return [f"{path.relative_to(ROOT)}:{item}" for item in result]


def files(places: tuple[str, ...]) -> list[Path]:
    """Return the files of some places, except this one, which contains the old words as examples."""
    result: list[Path] = []
    for place in places:
        path = ROOT / place
        result += [path] if path.is_file() else sorted({*path.rglob("*.py"), *path.rglob("*.md")})
    return [path for path in result if path != Path(__file__).resolve()]


@pytest.mark.parametrize("place", CLEAN)
def test_prose_and_names_use_plain_english(place):
    paths = files((place,))
    assert paths
    assert [item for path in paths for item in offences(path)] == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.pattern)
def test_each_pattern_matches_its_old_sentence_and_not_the_plain_one(entry):
    def matched(sentence: str) -> bool:
        return any(f": write {entry.instead}: " in item for item in old_words(iter([Text(1, sentence)])))

    assert matched(entry.old)
    assert not matched(entry.plain)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""All of it is told."""', 1),
        ('x = f"{y} is\\\\n to be " f"had here"', 1),
        ("# It begins\n# anew.\nx = 1", 1),
        ("# It is.\nx = 1\n# Anew.", 1),
        ('def f():\n    """Whether it is."""', 1),
        ('def f():\n    """Return whether it is."""', 0),
        ('class A:\n    @property\n    def f(self):\n        """Whether it is."""', 0),
        ('class A:\n    @property\n    def f(self):\n        """What it is."""', 1),
        ("def f(told): ...", 1),
        ("told_once = 1", 1),
        ("self.told, exit_codes = 1, 2", 1),
        ("import told", 0),
    ],
)
def test_python_is_searched_in_strings_comments_and_names(tmp_path, source, count):
    assert len(in_python(source)) == count


def test_markdown_is_searched_across_lines_and_not_in_code():
    text = "# Title\n\nIt is not to\nbe had.\n\n```python\ntold = 1\n```\n\n| a | told |\n"
    assert [item.partition(":")[0] for item in old_words(paragraphs(text))] == ["3", "10"]
