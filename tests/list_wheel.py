"""List a wheel and fail if it ships anything but st_jv5; run by `make check`."""

import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
print("\n".join(names))
strangers = [n for n in names if not n.startswith(("st_jv5/", "st_jv5-", "st_jv5."))]
wanted = (
    "py.typed",
    "folders/model_card.md",
    *(f"recipe/recipes/{name}.yaml" for name in ("demo", "laptop", "nano", "small")),
    "evaluation/published.yaml",
    "__init__.py",
    "export/texts.json",
    "export/cards/onnx.md",
    "serve/page/index.html",
)
missing = {f"st_jv5/{name}" for name in wanted} - set(names)
if strangers or missing:
    sys.exit(f"the wheel ships {strangers} and lacks {sorted(missing)}")
