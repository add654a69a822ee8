// Registers a device with MQTT.js alone, in the style of its tutorials: subscribe and publish
// follow each other without waiting. Then it sends telemetry to the assigned hub.
//
//   dpsd-sim exec -- node tutorial.js mqtt|mqtt4 mqtt|websocket key|x509
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');

const [library, transport, credential] = process.argv.slice(2);
const mqtt = require(library);
const env = process.env;
const id = env.DPS_REGISTRATION_ID;

function fail(err) {
  console.error(err.message);
  process.exit(1);
}

function token(resource, policy) {
  const sr = encodeURIComponent(resource);
  const se = Math.floor(Date.now() / 1000) + 3600;
  const sig = crypto.createHmac('sha256', Buffer.from(env.DPS_SYMMETRIC_KEY, 'base64')).update(`${sr}\n${se}`).digest('base64');
  return `SharedAccessSignature sr=${sr}&sig=${encodeURIComponent(sig)}&se=${se}${policy}`;
}

function connect(host, clientId, username, resource, policy) {
  const options = { clientId, username, reconnectPeriod: 0 };
  if (credential === 'key') {
    options.password = token(resource, policy);
  } else {
    options.cert = fs.readFileSync(env.DPS_CERTIFICATE_FILE);
    options.key = fs.readFileSync(env.DPS_PRIVATE_KEY_FILE);
  }
  const url = transport === 'websocket' ? `wss://${host}:443/mqtt` : `mqtts://${host}:8883`;
  const client = mqtt.connect(url, options);
  client.on('error', fail);
  client.on('close', () => fail(new Error('the connection is closed')));
  return client;
}

const client = connect(env.DPS_ENDPOINT, id, `${env.DPS_ID_SCOPE}/registrations/${id}/api-version=2019-03-31`,
  `${env.DPS_ID_SCOPE}/registrations/${id}`, '&skn=registration');
client.on('connect', () => {
  client.subscribe('$dps/registrations/res/#');
  client.publish('$dps/registrations/PUT/iotdps-register/?$rid=1', JSON.stringify({ registrationId: id }));
});
client.on('message', (topic, body) => {
  const reply = JSON.parse(body);
  if (reply.status === 'assigning') {
    const seconds = Number(/retry-after=(\d+)/.exec(topic)[1]);
    setTimeout(() => client.publish(`$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=${reply.operationId}`, ''), seconds * 1000);
    return;
  }
  if (reply.status !== 'assigned') {
    fail(new Error(`${topic} ${body}`));
  }
  const { assignedHub, deviceId } = reply.registrationState;
  console.log(`assigned ${assignedHub} ${deviceId}`);
  client.removeAllListeners('close');
  client.end();
  const hub = connect(assignedHub, deviceId, `${assignedHub}/${deviceId}/?api-version=2021-04-12`, `${assignedHub}/devices/${deviceId}`, '');
  hub.publish(`devices/${deviceId}/messages/events/`, 'hello', { qos: 1 }, (err) => {
    if (err) {
      fail(err);
    }
    console.log('telemetry sent');
    process.exit(0);
  });
});
