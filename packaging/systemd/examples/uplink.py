#!/usr/bin/python3
"""Sends the load of this gateway to its hub every minute, with the certificate that DPS issues.

It requires the Debian package python3-paho-mqtt. Its unit needs these lines; consumer.service and
certificate.conf show the others:

    ExecStart=/usr/local/lib/uplink.py
    ExecReload=/bin/kill -HUP $MAINPID
    SupplementaryGroups=dpsd-certificate

After a renewal: a reload opens a new connection with the new certificate. The program also reads
the name of the hub again. Without a reload, the open connection remains valid, but the program
would use the old certificate for its next connection.
"""

import json
import os
import queue
import signal
import ssl
import sys

import paho.mqtt.client as mqtt

INTERVAL = 60  # seconds


def connect(state):
    """Connects to the assigned hub."""
    # The paths in state.json name a directory that contains one pair and never changes, so the key
    # belongs to the certificate even during a renewal.
    pair = state["certificate"]
    context = ssl.create_default_context()
    context.load_cert_chain(pair["certificateFile"], pair["privateKeyFile"])

    hub, device = state["assignedHub"], state["deviceId"]
    if hasattr(mqtt, "CallbackAPIVersion"):  # paho-mqtt 2
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, device)
    else:
        client = mqtt.Client(device)
    client.username_pw_set(f"{hub}/{device}/?api-version=2021-04-12")
    client.tls_set_context(context)
    result = queue.Queue()
    client.on_connect = lambda *event: result.put(event[3])
    client.connect(hub, 8883)
    client.loop_start()
    code = result.get(timeout=30)
    if code != 0:
        sys.exit(f"{hub} refused the connection of {device}: {code}")
    return client


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
while True:
    with open("/var/lib/dpsd/state.json", encoding="utf-8") as file:
        state = json.load(file)
    client = connect(state)
    reload = None
    while not reload:
        message = client.publish(f"devices/{state['deviceId']}/messages/events/", json.dumps({"load": os.getloadavg()[0]}), qos=1)
        message.wait_for_publish(timeout=30)
        if not message.is_published():
            sys.exit("the hub did not acknowledge the message")
        reload = signal.sigtimedwait({signal.SIGHUP}, INTERVAL)
    client.disconnect()
    client.loop_stop()
