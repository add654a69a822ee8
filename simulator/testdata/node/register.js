// Registers a device with Microsoft's SDK, unchanged, against the endpoint
// that the environment names (see "dpsd-sim exec --help"):
//
//   node register.js mqtt|ws key|x509
//
// and prints "assigned HUB DEVICE". NODE_EXTRA_CA_CERTS must name the CA.
'use strict';

const fs = require('node:fs');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Mqtt, MqttWs } = require('azure-iot-provisioning-device-mqtt');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');

const env = process.env;
const [protocol, attestation] = process.argv.slice(2);

// The SDK makes its URI by putting the host between fixed texts:
//   mqtts://HOST   and   wss://HOST:443/$iothub/websocket
// so a port goes into the host; for the second, the fixed tail becomes a query.
const transports = {
  mqtt: () => [new Mqtt(), `${env.DPS_ENDPOINT}:${env.DPS_MQTT_PORT}`],
  ws: () => [new MqttWs(), `${env.DPS_ENDPOINT}:${env.DPS_WEBSOCKET_PORT}/$iothub/websocket?`],
};
const attestations = {
  key: () => new SymmetricKeySecurityClient(env.DPS_REGISTRATION_ID, env.DPS_SYMMETRIC_KEY),
  x509: () => new X509Security(env.DPS_REGISTRATION_ID, {
    cert: fs.readFileSync(env.DPS_CERTIFICATE_FILE, 'utf8'),
    key: fs.readFileSync(env.DPS_PRIVATE_KEY_FILE, 'utf8'),
  }),
};
if (!transports[protocol] || !attestations[attestation]) {
  console.error('usage: node register.js mqtt|ws key|x509');
  process.exit(2);
}

const [transport, host] = transports[protocol]();
const client = ProvisioningDeviceClient.create(host, env.DPS_ID_SCOPE, transport, attestations[attestation]());
client.register((err, result) => {
  if (err) {
    console.error(String(err), err.result ? JSON.stringify(err.result) : '');
    process.exit(1);
  }
  console.log(`assigned ${result.assignedHub} ${result.deviceId}`);
});
