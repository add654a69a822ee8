// Registers devices with Microsoft's SDK for Node, unchanged, against the
// endpoint that the environment names (see "dpsd-sim exec --help"):
//
//   NODE_EXTRA_CA_CERTS=$DPS_CA_FILE node register.js CASES.json
//
// It registers all devices concurrently, and prints one line of JSON for each: what the SDK
// returned, or its error.
'use strict';

const fs = require('node:fs');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Mqtt, MqttWs } = require('azure-iot-provisioning-device-mqtt');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');

const env = process.env;

// The SDK builds its URI by inserting the host between fixed texts:
//   mqtts://HOST   and   wss://HOST:443/$iothub/websocket
// so a port goes into the host; for the second, the fixed tail becomes a query.
const transports = {
  mqtt: () => [new Mqtt(), `${env.DPS_ENDPOINT}:${env.DPS_MQTT_PORT}`],
  websocket: () => [new MqttWs(), `${env.DPS_ENDPOINT}:${env.DPS_WEBSOCKET_PORT}/$iothub/websocket?`],
};

function attestation(device) {
  if (device.key) {
    return new SymmetricKeySecurityClient(device.registrationId, device.key);
  }
  return new X509Security(device.registrationId, {
    cert: fs.readFileSync(device.certificateFile, 'utf8'),
    key: fs.readFileSync(device.privateKeyFile, 'utf8'),
  });
}

function register(device) {
  const [transport, host] = transports[device.protocol]();
  const client = ProvisioningDeviceClient.create(host, env.DPS_ID_SCOPE, transport, attestation(device));
  if (device.payload) {
    client.setProvisioningPayload(device.payload);
  }
  client.register((err, result) => {
    const line = { registrationId: device.registrationId };
    if (err) {
      Object.assign(line, { error: err.constructor.name, message: err.message, cause: err.result ? JSON.stringify(err.result) : '' });
    } else {
      Object.assign(line, { status: result.status, hub: result.assignedHub, device: result.deviceId, payload: result.payload });
    }
    console.log(JSON.stringify(line));
  });
}

JSON.parse(fs.readFileSync(process.argv[2], 'utf8')).forEach(register);
