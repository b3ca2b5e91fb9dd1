"""Copy a folder, or some of what is in it: python copy_files.py FROM TO [NAME ...]. What lies there already stays."""

import shutil
import sys
from pathlib import Path

source, target, *names = map(Path, sys.argv[1:])
for name in names or sorted(path.relative_to(source) for path in source.iterdir()):
    there, here = source / name, target / name
    if here.exists():
        continue
    partial = here.with_name(f"{here.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    if there.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(there, partial)
    else:
        shutil.copy2(there, partial)
    partial.replace(here)
