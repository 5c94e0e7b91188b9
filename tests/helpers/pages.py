"""The Markdown pages of the repository, and the code blocks in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("fastmask", "kernels", "export", "benchmarks")  # rglob does not enter fastmask's links to the other three
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "fastmask" / "training" / "finetune.md",
        *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md")),
    )
}


def find_blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of a page in a language ("" for none), as printed."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)
    return [block for name, block in blocks if name == language]


def find_example(page: str, word: str) -> str:
    """The only Python example of a page that has a word in it."""
    (example,) = (example for example in find_blocks(page, "python") if word in example)
    return example


def find_commands(page: str) -> list[str]:
    """The lines of a page's shell blocks; a line that ends in a backslash goes on in the next one."""
    return [
        line for block in find_blocks(page, "sh") for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines() if line
    ]
