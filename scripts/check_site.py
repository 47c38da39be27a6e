"""Check a built documentation site: links, anchors and pictures are there, and nothing is loaded from outside.

python scripts/check_site.py build/site
"""

from __future__ import annotations

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}  # without a click
NOT_LOADED = ("canonical", "next", "prev", "index", "search", "author")  # kinds of <link> that only say where


class Page(HTMLParser):
    """Names of places in a page, and what it refers to.

    Attributes:
        places: its ids.
        links: what a reader can go to.
        loaded: what the browser fetches by itself.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what a tag says."""
        given = {name: value for name, value in attrs if value is not None}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        target = given.get(LOADED.get(tag, ""))
        if target and not (tag == "link" and given.get("rel") in NOT_LOADED):
            self.loaded.add(target)


def faults(site: Path) -> list[str]:
    """What is wrong in a site, one line each.

    Args:
        site: folder of the HTML pages.
    """
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site}: no page"]
    for path, page in pages.items():
        here = path.relative_to(site.resolve()).as_posix()
        found += [
            f"{here}: loads {target} from outside"
            for target in sorted(page.loaded)
            if urlsplit(target).scheme not in ("", "data") or target.startswith("//")
        ]
        for target in sorted(page.links | page.loaded):
            parts = urlsplit(target)
            if parts.scheme or target.startswith("//"):
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                found.append(f"{here}: {target} is not there")
            elif parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].places:
                found.append(f"{here}: {target} has no such place")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Check; 0 where nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="folder of the built site")
    found = faults(parser.parse_args(arguments).site)
    print("\n".join(found) or "links, anchors, pictures: all there, nothing from outside")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
