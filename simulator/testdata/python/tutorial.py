"""Registers a device with Paho alone, in the style of its tutorials, and sends telemetry.

    dpsd-sim exec -- python tutorial.py mqtt|websocket key|x509

Over WebSocket, it uses Paho's default path.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import sys
import threading
import time
import urllib.parse

import paho.mqtt.client as mqtt

transport, credential = sys.argv[1:]
scope, device_id = os.environ["DPS_ID_SCOPE"], os.environ["DPS_REGISTRATION_ID"]
done = threading.Event()


def token(resource, policy):
    """Makes a SAS token."""
    sr, se = urllib.parse.quote(resource, safe=""), int(time.time()) + 3600
    key = base64.b64decode(os.environ["DPS_SYMMETRIC_KEY"])
    sig = base64.b64encode(hmac.new(key, f"{sr}\n{se}".encode(), hashlib.sha256).digest())
    return f"SharedAccessSignature sr={sr}&sig={urllib.parse.quote(sig, safe='')}&se={se}{policy}"


def connect(host, client_id, user, resource, policy, on_connect, on_publish=lambda: None):
    """Connects with the credential of the command line."""
    client = mqtt.Client(client_id, transport="websockets" if transport == "websocket" else "tcp")
    if credential == "key":
        client.username_pw_set(user, token(resource, policy))
        client.tls_set(os.environ["DPS_CA_FILE"])
    else:
        client.username_pw_set(user)
        client.tls_set(os.environ["DPS_CA_FILE"], os.environ["DPS_CERTIFICATE_FILE"], os.environ["DPS_PRIVATE_KEY_FILE"])
    client.on_connect = on_connect
    client.on_publish = lambda _client, _data, _mid: on_publish()
    client.on_disconnect = lambda _client, _data, rc: fail(f"disconnected: {mqtt.error_string(rc)}") if rc else None
    client.connect(host, 443 if transport == "websocket" else 8883)
    client.loop_start()
    return client


def fail(text):
    """Ends the program."""
    print(text, file=sys.stderr, flush=True)
    os._exit(1)


def register(client, _data, _flags, rc):
    """Subscribes and publishes without waiting."""
    if rc:
        fail(mqtt.connack_string(rc))
    client.subscribe("$dps/registrations/res/#")
    client.publish("$dps/registrations/PUT/iotdps-register/?$rid=1", json.dumps({"registrationId": device_id}))


def reply(client, _data, message):
    """Polls until there is a result, and then sends telemetry to the hub."""
    body = json.loads(message.payload)
    if body.get("status") == "assigning":
        time.sleep(int(re.search(r"retry-after=(\d+)", message.topic)[1]))
        client.publish("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=" + body["operationId"])
        return
    if body.get("status") != "assigned":
        fail(f"{message.topic} {body}")
    state = body["registrationState"]
    hub, hub_device = state["assignedHub"], state["deviceId"]
    print("assigned", hub, hub_device, flush=True)
    client.disconnect()

    def send(other, _data, _flags, rc):
        if rc:
            fail(mqtt.connack_string(rc))
        other.publish(f"devices/{hub_device}/messages/events/", "hello", qos=1)

    connect(hub, hub_device, f"{hub}/{hub_device}/?api-version=2021-04-12", f"{hub}/devices/{hub_device}", "", send, done.set)


service = connect(os.environ["DPS_ENDPOINT"], device_id, f"{scope}/registrations/{device_id}/api-version=2019-03-31",
                  f"{scope}/registrations/{device_id}", "&skn=registration", register)
service.on_message = reply
done.wait()
print("telemetry sent", flush=True)
os._exit(0)
