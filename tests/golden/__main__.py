"""`python -m tests.golden`: write the golden files that are missing."""

from __future__ import annotations

import textwrap

from schemas.codec import RECORD_NAMES, published_versions
from tests.avro_rules import encode_as
from tests.golden import FOLDER, SAMPLES

for name in RECORD_NAMES:
    for version, schema in published_versions(name).items():
        path = FOLDER / f"{name}.{version}.hex"
        if not path.exists():
            data = encode_as(schema, SAMPLES[name]).hex()
            path.write_text("\n".join(textwrap.wrap(data, 80)) + "\n")
            print(f"wrote {path}")
