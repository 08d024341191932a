"""Make a pair of keys for this sample with the `cryptography` library; a company's come from its key management."""

import argparse
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def main(folder: Path) -> None:
    """Write `private.pem`, readable by its owner alone, and `public.pem`."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "private.pem").unlink(missing_ok=True)
    with os.fdopen(os.open(folder / "private.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    (folder / "public.pem").write_bytes(public)
    print(f"{folder}/private.pem and {folder}/public.pem")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("keys"), help="where the keys go")
    main(parser.parse_args().folder)
