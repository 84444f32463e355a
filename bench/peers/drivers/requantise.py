"""A GGUF file with its 4-bit matrices as Q4_0, the type for which llama.cpp has its fastest kernels: SOURCE TARGET.

What `llama-quantize --allow-requantize SOURCE TARGET Q4_0` does to such a file, with the rounding of the `gguf` package, which
is llama.cpp's own. Embedding and norms stay as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, quants

KEPT = ("GGUF.", "general.architecture", "general.file_type")


def copy_metadata(reader: GGUFReader, writer: GGUFWriter) -> None:
    """Every key but those that the writer sets itself."""
    for name, field in reader.fields.items():
        if not name.startswith(KEPT):
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)


def main() -> None:
    """Write TARGET; it appears under its name only when it is whole."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    reader = GGUFReader(source)
    part = target.with_suffix(".part")
    writer = GGUFWriter(part, str(reader.fields["general.architecture"].contents()))
    copy_metadata(reader, writer)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    q4_0, changed = GGMLQuantizationType.Q4_0, 0
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind == GGMLQuantizationType.Q4_1:
            data, kind, changed = quants.quantize(quants.dequantize(data, kind), q4_0), q4_0, changed + 1
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)
    print(f"{changed} of {len(reader.tensors)} tensors requantised")


if __name__ == "__main__":
    main()
