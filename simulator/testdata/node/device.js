// Does what Microsoft's samples do, with their variables and with the service's own ports:
// registers a device with the SDK for Node, connects it to its hub, and sends telemetry.
//
//   dpsd-sim exec -- node device.js mqtt|websocket|https key|x509
'use strict';

const fs = require('node:fs');
const { Client, Message } = require('azure-iot-device');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');
const dps = require('azure-iot-provisioning-device-mqtt');
const hub = require('azure-iot-device-mqtt');
const { Http } = require('azure-iot-provisioning-device-http');

const [transport, credential] = process.argv.slice(2);
const env = process.env;
const registration = { mqtt: dps.Mqtt, websocket: dps.MqttWs, https: Http }[transport];
const telemetry = transport === 'websocket' ? hub.MqttWs : hub.Mqtt;

function certificate() {
  return { cert: fs.readFileSync(env.CERTIFICATE_FILE, 'utf8'), key: fs.readFileSync(env.KEY_FILE, 'utf8') };
}

async function main() {
  const id = env.PROVISIONING_REGISTRATION_ID;
  const security = credential === 'key' ? new SymmetricKeySecurityClient(id, env.PROVISIONING_SYMMETRIC_KEY) : new X509Security(id, certificate());
  const { assignedHub, deviceId } = await ProvisioningDeviceClient.create(
    env.PROVISIONING_HOST, env.PROVISIONING_IDSCOPE, new registration(), security).register();
  console.log(`assigned ${assignedHub} ${deviceId}`);
  const proof = credential === 'key' ? `SharedAccessKey=${env.PROVISIONING_SYMMETRIC_KEY}` : 'x509=true';
  const client = Client.fromConnectionString(`HostName=${assignedHub};DeviceId=${deviceId};${proof}`, telemetry);
  if (credential !== 'key') {
    await client.setOptions(certificate());
  }
  await client.open();
  await client.sendEvent(new Message('hello'));
  console.log('telemetry sent');
  await client.close();
}

main().then(() => process.exit(0), (err) => {
  console.error(`${err.constructor.name}: ${err.message}`);
  process.exit(1);
});
