// Enrolls devices with Microsoft's service SDK for Node, unchanged, and registers them over
// HTTPS with its device SDK, against the simulator that the environment names:
//
//   dpsd-sim exec --service localhost:0 -- node service.js
//
// The last line is "assigned HUB DEVICE".
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const https = require('node:https');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Http } = require('azure-iot-provisioning-device-http');
const { ProvisioningServiceClient } = require('azure-iot-provisioning-service');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');

const env = process.env;

// The SDKs pass "host:port" to Node as the host name. This splits it.
const connect = https.globalAgent.createConnection;
https.globalAgent.createConnection = function (options, ...rest) {
  const [host, port] = options.host.split(':');
  return connect.call(this, { ...options, host, servername: host, port: port || options.port }, ...rest);
};

const service = ProvisioningServiceClient.fromConnectionString(env.PROVISIONING_CONNECTION_STRING);
const endpoint = `${env.DPS_ENDPOINT}:${env.DPS_WEBSOCKET_PORT}`;

function register(security) {
  return new Promise((resolve, reject) => {
    const client = ProvisioningDeviceClient.create(endpoint, env.DPS_ID_SCOPE, new Http(), security);
    client.register((err, result) => (err ? reject(err) : resolve(result)));
  });
}

// refused expects the HTTP status of a refusal.
async function refused(status, promise) {
  const err = await promise.then(() => assert.fail(`accepted instead of ${status}`), (e) => e);
  assert.strictEqual(err.response && err.response.statusCode, status, String(err));
}

// all returns all results of a query. Without the token, next would begin again.
async function all(query) {
  const found = [];
  while (query.hasMoreResults) {
    found.push(...(await query.next(query.continuationToken)).responseBody);
  }
  return found;
}

async function main() {
  // An individual enrollment with keys that the service creates.
  const created = (await service.createOrUpdateIndividualEnrollment({
    registrationId: 'press-7',
    deviceId: 'Press-7',
    attestation: { type: 'symmetricKey' },
    provisioningStatus: 'enabled',
    initialTwin: { tags: { site: 'here' }, properties: { desired: { rate: 5 } } },
  })).responseBody;
  assert.strictEqual(created.initialTwin.tags.site, 'here');
  await refused(409, service.createOrUpdateIndividualEnrollment({ registrationId: 'press-7', attestation: { type: 'symmetricKey' } }));

  const keys = (await service.getIndividualEnrollmentAttestationMechanism('press-7')).responseBody;
  const assigned = await register(new SymmetricKeySecurityClient('press-7', keys.symmetricKey.primaryKey));
  assert.strictEqual(assigned.deviceId, 'Press-7');

  // An update with the etag, which also disables the enrollment; then with the old etag.
  const before = (await service.getIndividualEnrollment('press-7')).responseBody;
  assert.strictEqual(before.registrationState.assignedHub, assigned.assignedHub);
  const after = (await service.createOrUpdateIndividualEnrollment({ ...before, provisioningStatus: 'disabled' })).responseBody;
  assert.strictEqual(after.provisioningStatus, 'disabled');
  await refused(412, service.createOrUpdateIndividualEnrollment(before));

  // A group with the certificate authority of the simulator, for the device of "dpsd-sim exec".
  const text = fs.readFileSync(env.DPS_CERTIFICATE_FILE, 'utf8');
  const authority = fs.readFileSync(env.DPS_CA_FILE.replace(/ca\.pem$/, 'device-ca.pem'), 'utf8');
  await service.deleteEnrollmentGroup('certificates');
  await service.createOrUpdateEnrollmentGroup({
    enrollmentGroupId: 'cameras',
    attestation: { type: 'x509', x509: { signingCertificates: { primary: { certificate: authority } } } },
    provisioningStatus: 'enabled',
  });
  const group = (await service.getEnrollmentGroup('cameras')).responseBody;
  assert.strictEqual(group.attestation.x509.signingCertificates.primary.info.version, 3);
  const device = await register(new X509Security(env.DPS_REGISTRATION_ID, { cert: text, key: fs.readFileSync(env.DPS_PRIVATE_KEY_FILE, 'utf8') }));

  // Several enrollments in one operation, and a query in pages.
  const many = ['a', 'b', 'c'].map((registrationId) => ({ registrationId, attestation: { type: 'symmetricKey' } }));
  const bulk = await new Promise((resolve, reject) => {
    service.runBulkEnrollmentOperation({ mode: 'create', enrollments: many }, (err, result) => (err ? reject(err) : resolve(result)));
  });
  assert.deepStrictEqual(bulk, { isSuccessful: true, errors: [] });
  const found = await all(service.createIndividualEnrollmentQuery({ query: 'SELECT * FROM enrollments' }, 2));
  assert.deepStrictEqual(found.map((e) => e.registrationId), ['a', 'b', 'c', 'press-7']);
  const groups = await all(service.createEnrollmentGroupQuery({ query: 'SELECT * FROM enrollmentGroups' }));
  assert.deepStrictEqual(groups.map((g) => g.enrollmentGroupId), ['cameras', 'keys']);

  // Registration states.
  const states = await all(service.createEnrollmentGroupDeviceRegistrationStateQuery({ query: 'SELECT * FROM enrollments' }, 'cameras', 10));
  assert.deepStrictEqual(states.map((s) => s.registrationId), [env.DPS_REGISTRATION_ID]);
  const state = (await service.getDeviceRegistrationState(env.DPS_REGISTRATION_ID)).responseBody;
  assert.strictEqual(state.status, 'assigned');
  await service.deleteDeviceRegistrationState(state);
  await refused(404, service.getDeviceRegistrationState(env.DPS_REGISTRATION_ID));

  // Removal.
  await service.deleteIndividualEnrollment('press-7');
  await refused(404, service.getIndividualEnrollment('press-7'));
  const err = await register(new SymmetricKeySecurityClient('press-7', keys.symmetricKey.primaryKey)).then(() => assert.fail('assigned'), (e) => e);
  assert.strictEqual(err.constructor.name, 'UnauthorizedError', String(err));

  console.log(`assigned ${device.assignedHub} ${device.deviceId}`);
}

main().catch((err) => {
  console.error(err, err.responseBody || (err.result && JSON.stringify(err.result)));
  process.exit(1);
});
