#!/usr/bin/env python3
"""Usage: signer.py SOCKET KEY

A second implementation of the signer protocol (docs/signer.md), with Python's standard library.
The openssl command signs with the key, a PEM file.
"""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile

DIGEST_LENGTHS = {"sha256": 32, "sha384": 48, "sha512": 64}
OPTIONS = {
    "ecdsa": [],
    "rsa-pkcs1": ["-pkeyopt", "rsa_padding_mode:pkcs1"],
    "rsa-pss": ["-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:digest"],
}


def openssl(*arguments, data=None):
    return subprocess.run(["openssl", *arguments], input=data, stdout=subprocess.PIPE, check=True).stdout


class Key:
    def __init__(self, path):
        self.path = path
        self.public = openssl("pkey", "-in", path, "-pubout", "-outform", "DER")
        text = openssl("pkey", "-in", path, "-noout", "-text_pub")
        algorithms = ["rsa-pss", "rsa-pkcs1"] if b"Modulus" in text else ["ecdsa"]
        self.schemes = [f"{a}-{h}" for a in algorithms for h in DIGEST_LENGTHS]

    def sign(self, scheme, digest):
        algorithm, _, name = scheme.rpartition("-")
        with tempfile.NamedTemporaryFile() as file:
            file.write(digest)
            file.flush()
            return openssl("pkeyutl", "-sign", "-inkey", self.path, "-in", file.name,
                           "-pkeyopt", f"digest:{name}", *OPTIONS[algorithm])


def unsupported(why):
    return {"error": "unsupported", "message": why}


def answer(key, line):
    try:
        request = json.loads(line)
        version = request.get("version")
    except (ValueError, AttributeError):
        return unsupported("the request is not a JSON object")
    if version != 1:
        return unsupported("the version of the protocol is 1")
    if request.get("request") == "public-key":
        return {"public_key": base64.b64encode(key.public).decode()}
    if request.get("request") == "schemes":
        return {"schemes": key.schemes}
    if request.get("request") == "sign":
        scheme = request.get("scheme")
        if scheme not in key.schemes:
            return unsupported("the scheme is not supported")
        try:
            digest = base64.b64decode(request.get("digest"), validate=True)
        except (ValueError, TypeError):
            return unsupported("the digest is not base64")
        if len(digest) != DIGEST_LENGTHS[scheme.rpartition("-")[2]]:
            return unsupported("the digest has the wrong length for the scheme")
        try:
            return {"signature": base64.b64encode(key.sign(scheme, digest)).decode()}
        except subprocess.CalledProcessError as failed:
            return {"error": "unavailable", "message": str(failed)}
    return unsupported("the request is not known")


def main():
    path, key = sys.argv[1], Key(sys.argv[2])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen()
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            while line := stream.readline(8192):
                stream.write(json.dumps(answer(key, line)).encode() + b"\n")
                stream.flush()


main()
