"""Does what Microsoft's samples do, with their variables and with the service's own ports.

    dpsd-sim exec -- python device.py mqtt|websocket key|x509

It registers a device with the SDK for Python, connects it to its hub, and sends telemetry.
"""

import os
import sys

from azure.iot.device import IoTHubDeviceClient, ProvisioningDeviceClient, X509

transport, credential = sys.argv[1:]
options = {"websockets": transport == "websocket"}
service = {
    "provisioning_host": os.environ["PROVISIONING_HOST"],
    "registration_id": os.environ["PROVISIONING_REGISTRATION_ID"],
    "id_scope": os.environ["PROVISIONING_IDSCOPE"],
}
if credential == "key":
    proof = {"symmetric_key": os.environ["PROVISIONING_SYMMETRIC_KEY"]}
    dps, hub = ProvisioningDeviceClient.create_from_symmetric_key, IoTHubDeviceClient.create_from_symmetric_key
else:
    proof = {"x509": X509(cert_file=os.environ["X509_CERT_FILE"], key_file=os.environ["X509_KEY_FILE"])}
    dps, hub = ProvisioningDeviceClient.create_from_x509_certificate, IoTHubDeviceClient.create_from_x509_certificate


def main():
    """Registers, connects and sends."""
    result = dps(**service, **proof, **options).register()
    state = result.registration_state
    print(result.status, state.assigned_hub, state.device_id, flush=True)
    device = hub(hostname=state.assigned_hub, device_id=state.device_id, **proof, **options)
    device.connect()
    device.send_message("hello")
    print("telemetry sent", flush=True)
    device.shutdown()


try:
    main()
    os._exit(0)  # a client of a refused registration keeps its threads
except Exception as e:  # whatever the SDK raises
    print(type(e).__name__, e, repr(e.__cause__), file=sys.stderr, flush=True)
    os._exit(1)
