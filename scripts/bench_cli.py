"""How long `hybridize --help` and `hybridize check` take, whole process, and that they import nothing heavy.

usage: python scripts/bench_cli.py [--rounds 15] [--json OUT]
Goals: both under 0.5 s; no torch, transformers, mergekit or numpy. The first check may dequantise nothing, so the
donor of recipes/quickstart.yaml should have been planned once (scripts/quickstart does).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

RECIPE = Path(__file__).parent.parent / "recipes" / "identity.yaml"  # needs no text
COMMANDS = {"python -c pass": None, "--help": ["--help"], "check": ["check", str(RECIPE)], "schema": ["schema"]}
HEAVY = ("torch", "transformers", "mergekit", "numpy")


def run(arguments: list[str] | None) -> float:
    """Seconds of wall clock that one process takes."""
    program = "pass" if arguments is None else f"from hybridizer.cli import main; main({arguments!r})"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - start


def heavy_imports(arguments: list[str]) -> list[str]:
    """The heavy libraries that the command has imported when it ends."""
    program = (
        f"import sys\nfrom hybridizer.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
        f"print('heavy', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return result.stdout.splitlines()[-1].split()[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds):
        for name, arguments in COMMANDS.items():
            times[name].append(run(arguments))
    rows = []
    for name, arguments in COMMANDS.items():
        heavy = heavy_imports(arguments) if arguments else []
        rows.append(
            {"command": name, "median_s": statistics.median(times[name]), "best_s": min(times[name]), "heavy": heavy}
        )
        row = rows[-1]
        print(
            f"{name:16s} median {row['median_s']:.3f} s  best {row['best_s']:.3f} s  heavy imports: {heavy or 'none'}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
