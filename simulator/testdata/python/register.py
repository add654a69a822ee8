"""Registers devices with Microsoft's SDK for Python, unchanged.

    python register.py CASES.json PROXY-PORT

The endpoint is the one the environment names (see "dpsd-sim exec --help"),
but the SDK knows no ports other than 8883 and 443. So it is given the service's
own host name, and by its option proxy_options an HTTP proxy on this machine
that connects those ports with the simulator's.

All devices register at once. For each a line of JSON is printed: what the SDK
returned, or the error it raised.
"""

import json
import os
import sys
import threading

from azure.iot.device import ProvisioningDeviceClient, ProxyOptions, X509

HOST = "global.azure-devices-provisioning.net"


def client(device, proxy, ca):
    """Makes a client as the samples of the SDK do."""
    options = {
        "provisioning_host": HOST,
        "registration_id": device["registrationId"],
        "id_scope": os.environ["DPS_ID_SCOPE"],
        "websockets": device["protocol"] == "websocket",
        "server_verification_cert": ca,
        "proxy_options": ProxyOptions("HTTP", "127.0.0.1", proxy),
    }
    if device.get("key"):
        return ProvisioningDeviceClient.create_from_symmetric_key(symmetric_key=device["key"], **options)
    certificate = X509(cert_file=device["certificateFile"], key_file=device["privateKeyFile"])
    return ProvisioningDeviceClient.create_from_x509_certificate(x509=certificate, **options)


def register(device, proxy, ca):
    """Registers one device."""
    line = {"registrationId": device["registrationId"]}
    try:
        c = client(device, proxy, ca)
        c.provisioning_payload = device.get("payload")
        result = c.register()
        state = result.registration_state
        line.update(status=result.status, hub=state.assigned_hub, device=state.device_id)
        line.update(payload=json.loads(state.response_payload))  # it is given as text
    except Exception as e:  # whatever the SDK raises is what is asked for
        line.update(error=type(e).__name__, message=str(e), cause=repr(e.__cause__))
    print(json.dumps(line), flush=True)


def main():
    """Registers all devices."""
    with open(sys.argv[1], encoding="utf-8") as f:
        devices = json.load(f)
    with open(os.environ["DPS_CA_FILE"], encoding="utf-8") as f:
        ca = f.read()
    threads = [threading.Thread(target=register, args=(d, int(sys.argv[2]), ca)) for d in devices]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    # A refused client keeps its connection and its threads.
    sys.stdout.flush()
    os._exit(0)


main()
