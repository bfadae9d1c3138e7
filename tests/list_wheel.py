"""List a wheel and fail if it ships anything but st_jv5; run by `make check`."""

import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
print("\n".join(names))
strangers = [n for n in names if not n.startswith(("st_jv5/", "st_jv5-", "st_jv5."))]
missing = {"st_jv5/py.typed", "st_jv5/model_card.md", "st_jv5/__init__.py"} - set(names)
if strangers or missing:
    sys.exit(f"the wheel ships {strangers} and lacks {sorted(missing)}")
