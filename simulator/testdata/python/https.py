"""Registers a device over HTTPS with requests, as programs without an SDK do.

    dpsd-sim exec -- python https.py key|x509

Then it lists the modules of the device at the assigned hub, a call that only authenticates.
"""

import base64
import hashlib
import hmac
import os
import sys
import time
import urllib.parse

import requests

scope, device = os.environ["PROVISIONING_IDSCOPE"], os.environ["PROVISIONING_REGISTRATION_ID"]
session = requests.Session()
if sys.argv[1] == "x509":
    session.cert = os.environ["CERTIFICATE_FILE"], os.environ["KEY_FILE"]


def authorization(resource, policy=""):
    """Makes the header of a request with a symmetric key."""
    if session.cert:
        return {}
    sr, se = urllib.parse.quote(resource, safe=""), int(time.time()) + 3600
    key = base64.b64decode(os.environ["PROVISIONING_SYMMETRIC_KEY"])
    sig = base64.b64encode(hmac.new(key, f"{sr}\n{se}".encode(), hashlib.sha256).digest())
    return {"Authorization": f"SharedAccessSignature sr={sr}&sig={urllib.parse.quote(sig, safe='')}&se={se}{policy}"}


def call(method, path, headers, **options):
    """Returns the body and the headers of a successful answer."""
    answer = session.request(method, "https://" + path, headers=headers, timeout=60, **options)
    if not answer.ok:
        sys.exit(f"{answer.status_code} {answer.text}")
    return answer.json(), answer.headers


own = f"{scope}/registrations/{device}"
base = os.environ["PROVISIONING_HOST"] + "/" + own
headers, version = authorization(own, "&skn=registration"), {"api-version": "2021-06-01"}
body, answer = call("PUT", base + "/register", headers, params=version, json={"registrationId": device})
while body["status"] == "assigning":
    time.sleep(int(answer["Retry-After"]))
    body, answer = call("GET", base + "/operations/" + body["operationId"], headers, params=version)
if body["status"] != "assigned":
    sys.exit(str(body))
hub, device = body["registrationState"]["assignedHub"], body["registrationState"]["deviceId"]
print("assigned", hub, device, flush=True)
call("GET", f"{hub}/devices/{device}/modules", authorization(f"{hub}/devices/{device}"), params={"api-version": "2017-11-08-preview"})
print("the hub has authenticated the device")
