# Registers a device with Microsoft's SDK for Python, as the SDK's own samples do. Nothing in
# it is specific to the simulator: Python reads the trusted certificates from SSL_CERT_FILE.
import os

from azure.iot.device import ProvisioningDeviceClient

client = ProvisioningDeviceClient.create_from_symmetric_key(
    provisioning_host=os.environ["PROVISIONING_HOST"],
    id_scope=os.environ["PROVISIONING_IDSCOPE"],
    registration_id=os.environ["PROVISIONING_REGISTRATION_ID"],
    symmetric_key=os.environ["PROVISIONING_SYMMETRIC_KEY"],
    websockets=os.environ.get("PROVISIONING_WEBSOCKETS") == "true",
)
result = client.register()
state = result.registration_state
print(result.status, state.assigned_hub, state.device_id)
raise SystemExit(result.status != "assigned")
