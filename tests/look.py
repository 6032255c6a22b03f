"""Pictures of a page as a browser shows it: light and dark, wide and as wide as a telephone.

    make look PAGE=runs/quickstart/evaluations/evaluate-2527/card.html [OUT=looks]

Needs Chromium, or a browser of its kind named by ``BROWSER``. Nothing here judges the pictures:
somebody is to look at them.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

KINDS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = {"wide": 1200, "phone": 412}
SCHEMES = {"light": 1, "dark": 0}  # numbers of Blink's enumeration of preferred colour schemes
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def browser() -> str:
    """The program.

    Raises:
      SystemExit: if there is none.
    """
    for name in filter(None, (os.environ.get("BROWSER"), *KINDS)):
        if found := shutil.which(name):
            return found
    sys.exit("error: no Chromium was found: install one, or name it by BROWSER=PATH.")


def look(page: pathlib.Path, out: pathlib.Path, height: int) -> list[pathlib.Path]:
    """Writes one picture a width and colour scheme, and returns their files."""
    out.mkdir(parents=True, exist_ok=True)
    program, made = browser(), []
    for scheme, number in SCHEMES.items():
        for name, width in WIDTHS.items():
            picture = out / f"{page.stem}-{scheme}-{name}.png"
            with tempfile.TemporaryDirectory() as profile:
                subprocess.run(
                    [
                        program,
                        *QUIET,
                        f"--user-data-dir={profile}",
                        f"--blink-settings=preferredColorScheme={number}",
                        f"--window-size={width},{height}",
                        f"--screenshot={picture}",
                        page.resolve().as_uri(),
                    ],
                    check=True,
                    capture_output=True,
                    timeout=120,
                )
            made.append(picture)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("looks"))
    parser.add_argument("--height", type=int, default=4000, help="pixels of the page that are seen")
    given = parser.parse_args()
    for picture in look(given.page, given.out, given.height):
        print(picture)


if __name__ == "__main__":
    main()
