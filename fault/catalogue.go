package fault

import "slices"

// Entry describes a code.
type Entry struct {
	Code  Code
	Class Class
	// Summary describes the failure in one line.
	Summary string
	// Advice describes the remedy in one line.
	Advice string
	// When is a circumstance in which Instead replaces Advice; "" for none.
	When    Circumstance
	Instead string
}

// AdviceWhen returns the advice for a circumstance.
func (e Entry) AdviceWhen(c Circumstance) string {
	if c != "" && c == e.When {
		return e.Instead
	}
	return e.Advice
}

// Circumstance is a fact about a failure, besides its code, that changes the advice. Its
// text continues a sentence after "when".
type Circumstance string

// The circumstances.
const (
	// OnlyMQTT: only MQTT over TLS was tried, at a port other than 443.
	OnlyMQTT Circumstance = "only port 8883 was tried"
	// AtHub: the peer was the assigned hub, which dpsd check contacts.
	AtHub Circumstance = "the assigned hub was tried"
	// Hidden: the sandbox of dpsd.service hides the file.
	Hidden Circumstance = "the file is below /home, /root or /run/user"
	// CertificateDemanded: the credential is a symmetric key, but the server required a
	// certificate.
	CertificateDemanded Circumstance = "the server demands a client certificate"
	// SovereignCloud: the name belongs to Azure Government or Azure China.
	SovereignCloud Circumstance = "the name ends with .us or .cn"
	// APIVersion: the service rejected the API version.
	APIVersion Circumstance = "DPS does not support the API version"
)

// Catalogue returns the entries of all codes, in the order of the stages of an attempt.
func Catalogue() []Entry { return slices.Clone(catalogue) }

// Describe returns the entry of a code. For a code that is not in the catalogue, it returns
// the entry of Internal.
func Describe(code Code) Entry {
	for _, e := range catalogue {
		if e.Code == code {
			return e
		}
	}
	return Describe(Internal)
}

// catalogue does not change after start-up.
var catalogue = []Entry{
	{ConfigurationInvalid, Configuration,
		"The configuration file cannot work as written.",
		"Correct dpsd.toml at the place named in the message. Then, if the service has exited, run: systemctl restart --no-block dpsd. A running service applies the correction automatically before its first READY; after that, run: systemctl reload dpsd", "", ""},

	{InputUnreadable, Input,
		"An input that the configuration names (serial number, machine ID, host name, payload) is missing or unreadable.",
		"Create the file if it does not exist, and make it readable by the user dpsd. If the host name is missing, set it: hostnamectl set-hostname NAME. dpsd checks its inputs every 10 seconds.",
		Hidden, "dpsd.service cannot see files there: put the file below /etc/dpsd, readable by the user dpsd, and correct its path in dpsd.toml."},
	{InputInvalid, Input,
		"The content of a file that the configuration names is unusable.",
		"Write a registration ID (letters, digits, - . _ :) to the file or, for payload_file, a JSON object. dpsd checks the file every 10 seconds.", "", ""},
	{CredentialUnreadable, Input,
		"A key, certificate or proxy password is missing or unreadable.",
		"For \"file:\", create the file if it does not exist, and set its group to dpsd-keys and its mode to 0640; dpsd checks it every 10 seconds. For \"credential:\", provide it to systemd, then run: systemctl restart --no-block dpsd",
		Hidden, "dpsd.service cannot see files there: put the file in /etc/dpsd/keys, with group dpsd-keys and mode 0640, and correct its path in dpsd.toml. Or provide it as a systemd credential."},
	{CredentialEncrypted, Input,
		"systemd handed over a credential that is still encrypted.",
		"Add a drop-in with LoadCredentialEncrypted=NAME for this credential, then run: systemctl restart --no-block dpsd", "", ""},
	{CredentialInvalid, Input,
		"A key, certificate or proxy password is readable but unusable.",
		"Check that the key is the base64 text from the portal, that the certificate and the private key match, that the CN is the registration ID, and that a password file has exactly one line. dpsd checks a \"file:\" every 10 seconds; for a \"credential:\", run: systemctl restart --no-block dpsd", "", ""},
	{CertificateExpired, Credential,
		"DPS refused the device certificate, and according to this gateway's clock, the certificate or its chain is not valid.",
		"If the certificate's validity dates are right, correct the gateway's clock. Otherwise, renew the certificate named in the cause, and install the chain: dpsd reads a \"file:\" again when it changes; for a \"credential:\", run: systemctl restart --no-block dpsd", "", ""},
	{TPMKeyUnusable, Input,
		"The TPM key cannot be used: the TPM was cleared or replaced, the key is from another TPM, the TPM does not support the type of the key, or the key has a password or a policy.",
		"If the TPM was cleared or replaced, or if this disk is from another gateway, the key is lost: create a new one with dpsd tpm create-key --replace, and enroll the gateway again; for a symmetric key, use dpsd tpm seal --replace. Otherwise, see the cause. To test a key, run: dpsd tpm test FILE", "", ""},
	{TPMUnavailable, Transient,
		"The TPM is missing or busy, it did not answer in time, or dpsd is not allowed to use it.",
		"No action is needed if the TPM is only busy or appears late. If this continues, run dpsd check: it shows whether the TPM exists, and whether dpsd.service is allowed to use it.", "", ""},
	{TPMLockedOut, Input,
		"The TPM is locked, because other programs used wrong passwords.",
		"Find the program that uses wrong passwords, and wait until the TPM unlocks itself: dpsd tpm status shows how long that takes. dpsd never sends a password to the TPM.", "", ""},
	{SignerFailed, Transient,
		"The signer did not answer, exited during a request, or sent an invalid answer.",
		"Check that the signer is running, and read its log entries. dpsd retries automatically.", "", ""},
	{SignerRefused, Input,
		"The signer refused to use its key, or dpsd cannot use this signer.",
		"See the cause, and read the log entries of the signer. If the PIN is wrong, correct it: dpsd asks again only after a long delay, because wrong PINs can lock a token. Only root, the user dpsd, or the owner of the socket's directory may listen on the socket, and dpsd must have permission to connect to it.", "", ""},

	{NetworkUnreachable, Offline,
		"There is no route to DPS; nothing was sent.",
		"Check the cable, the modem and the default route. dpsd connects as soon as there is a route.", "", ""},
	{ResolverMissing, Offline,
		"No name server is available.",
		"Check that /etc/resolv.conf exists and lists a name server (the service that manages the network usually writes it), and that this server is running and reachable.", "", ""},
	{DNSFailed, Transient,
		"The endpoint's name could not be resolved.",
		"Check the spelling of endpoint in dpsd.toml, and check the name server.",
		AtHub, "Check the name server. If it works, the hub was removed or renamed: dpsd reprovision asks DPS for the current one."},
	{DNSBlocked, Interception,
		"The name of the endpoint resolves to this gateway itself (0.0.0.0 or 127.x), as with a DNS blocklist.",
		"Allow the name on the filtering name server (Pi-hole, AdGuard, the router's filter), and remove it from /etc/hosts; getent ahosts NAME shows the addresses that this gateway uses.", "", ""},
	{TCPRefused, Transient,
		"The connection was refused.",
		"Check the name and port of the server, and make sure that the firewall allows outbound connections to this port.",
		OnlyMQTT, "Check endpoint, and make sure that the firewall allows outbound connections to mqtt_port (8883), or configure dpsd to also try port 443: protocols = [\"mqtt\", \"websocket\"]."},
	{ConnectTimeout, Transient,
		"The connection was not established within connect_timeout.",
		"Check that the firewall allows outbound connections to this port. On a slow link, increase connect_timeout.",
		OnlyMQTT, "Check that the firewall allows outbound connections to mqtt_port (8883), or configure dpsd to also try port 443: protocols = [\"mqtt\", \"websocket\"]. On a slow link, increase connect_timeout."},
	{ConnectionLost, Transient,
		"The connection was lost.",
		"No action is needed unless this continues; if it does, check the link, the proxy, and the other faults in the journal.", "", ""},
	{ProxyAddress, Input,
		"HTTPS_PROXY is not a valid proxy address.",
		"Set it to http://host:port with: systemctl edit dpsd. Or set proxy in dpsd.toml. If the user name or password has special characters, percent-encode it (in Environment=, write %% for each %), or use proxy_user and proxy_password. Then restart dpsd.", "", ""},
	{ProxyUnreachable, Transient,
		"The proxy is unreachable.",
		"Check the host and port in proxy or HTTPS_PROXY, and make sure that the proxy is running.", "", ""},
	{ProxyUntrusted, Interception,
		"The proxy's own certificate is not trusted, has expired, or is for a different name.",
		"Set proxy_ca_file to the certificate of the authority that issued the proxy's certificate, and use the proxy's name as it appears in the certificate.", "", ""},
	{ProxyScheme, Transient,
		"The proxy address begins with http:// although the proxy expects TLS, or with https:// although it does not.",
		"Correct the scheme in proxy or HTTPS_PROXY: use https:// only if the proxy itself expects TLS.", "", ""},
	{ProxyAuth, Transient,
		"The proxy requires authentication or rejected the credentials (407 or 401).",
		"Set proxy_user and proxy_password. dpsd supports only basic authentication with proxies; the cause names what the proxy accepts.", "", ""},
	{ProxyAuthUnsupported, Transient,
		"The proxy accepts only authentication that dpsd does not support, such as NTLM or Negotiate (407 or 401).",
		"dpsd supports only basic authentication with proxies. Configure the proxy to allow the endpoint without authentication, or to offer Basic to this gateway; or run a local proxy that signs in (cntlm, px) and set proxy to its address.", "", ""},
	{ProxyUpstream, Transient,
		"The proxy allowed the connection but could not establish it (502, 503 or 504).",
		"Check on the proxy that it can resolve the endpoint's name and reach its port: its name server, its firewall and its own upstream proxy.",
		OnlyMQTT, "Check on the proxy that it can resolve the endpoint's name and reach mqtt_port (8883), or configure dpsd to also try port 443: protocols = [\"mqtt\", \"websocket\"]."},
	{ProxyRefused, Transient,
		"The proxy refused the connection, or its answer is not that of a proxy.",
		"Allow CONNECT to the endpoint and port in the proxy. If the proxy closes the connection without an answer, it may expect TLS; in that case, begin its address with https://. See the cause in the journal.",
		OnlyMQTT, "Allow CONNECT to the endpoint's mqtt_port (8883) in the proxy, or configure dpsd to also try port 443, which most proxies allow: protocols = [\"mqtt\", \"websocket\"]. If the proxy closes the connection without an answer, it may expect TLS; in that case, begin its address with https://. See the cause in the journal."},

	{CAUnreadable, Input,
		"ca_file or proxy_ca_file is missing or unreadable, or contains no certificate.",
		"Put PEM certificates into the file, and make it readable by the user dpsd. dpsd checks the file every 10 seconds.",
		Hidden, "dpsd.service cannot see files there: put the certificates below /etc/dpsd, readable by the user dpsd, and correct the path in dpsd.toml."},
	{TLSUntrusted, Interception,
		"The server's certificate is signed by an authority that this gateway does not trust.",
		"If a proxy inspects TLS here, exempt the endpoint from inspection, or set ca_file; otherwise update ca-certificates.",
		SovereignCloud, "Set ca_file to a PEM file with the DigiCert Global Root CA (G1), which Azure Government and Azure in China still use and which distributions removed in April 2026: https://cacerts.digicert.com/DigiCertGlobalRootCA.crt.pem"},
	{TLSIntercepted, Interception,
		"The connection is intercepted: something on the path is answering in place of the server. The cause names it as the issuer of the certificate.",
		"Exempt the endpoint from TLS inspection; device certificates do not work through it. If you use only keys, you can add the issuer to ca_file; in that case, if the cause shows a refusal, the key may also be wrong.", "", ""},
	{TLSWrongHost, Interception,
		"The server's certificate is for a different name.",
		"Check endpoint in dpsd.toml; if that is right, something on the path is answering in place of DPS.",
		AtHub, "Something on the path is answering in place of the hub: look for a proxy or a firewall that inspects TLS."},
	{TLSExpired, Transient,
		"According to this gateway's clock, the server's certificate has expired.",
		"Check the clock (timedatectl); if that is right, something on the path is answering in place of the server.", "", ""},
	{TLSVersion, Transient,
		"The server supports no TLS version newer than 1.1.",
		"Something on the path is answering in place of the server: DPS itself supports TLS 1.2.", "", ""},
	{TLSFailed, Transient,
		"The TLS handshake failed.",
		"See the cause in the journal, and look for middleboxes between the gateway and the server.",
		CertificateDemanded, "DPS accepts a symmetric key without a certificate. Check endpoint, and look for something on the path that answers in place of DPS. If the server is right, configure a credential of type x509."},
	{NotTLS, Interception,
		"The server does not speak TLS.",
		"Check the endpoint and port: another service may be listening there, or a middlebox may be answering.",
		AtHub, "Something on the path is answering in place of the hub: look for a proxy, a firewall or a login page."},
	{CaptivePortal, Interception,
		"A web server answered instead of DPS.",
		"The network requires you to log in or to accept its terms first. Do that, or use a different network.", "", ""},
	{WebSocketRefused, Interception,
		"The server did not switch to WebSocket.",
		"Check that the proxy or firewall allows WebSocket, and that endpoint is a DPS endpoint.", "", ""},
	{ClockImplausible, Clock,
		"This gateway's clock is wrong, which explains the failure.",
		"Set the clock, or enable NTP. dpsd retries as soon as the clock changes.", "", ""},

	{CertificateRefused, Credential,
		"DPS refused the device certificate during the TLS handshake.",
		"Check that the certificate or its issuer is enrolled and not revoked, and that the file contains the intermediate certificates.", "", ""},
	{NotMQTT, Interception,
		"The server speaks TLS but not MQTT.",
		"Check the endpoint and port: another service may be listening there, or a middlebox may be answering.", "", ""},
	{ConnackRefused, Credential,
		"DPS refused the credential (CONNACK 4 or 5).",
		"If you use a key, first check that it is the device's own key, not the enrollment group's (dpsd derive-key), and that the registration ID has no upper-case letters. Then check the key or certificate, and check the gateway's clock.", "", ""},
	{ConnackUnavailable, Transient,
		"DPS was reached, but it answered that it is unavailable (CONNACK 3).",
		"Check id_scope first: DPS also gives this answer for a wrong id_scope, even if the network and the port are right. If id_scope is right, DPS is busy or under maintenance; dpsd retries automatically.", "", ""},
	{ConnackRejected, Enrollment,
		"DPS refused the CONNECT packet itself (CONNACK 1 or 2).",
		"Check id_scope and registration_id, and make sure that endpoint is a DPS endpoint.", "", ""},
	{NotDPS, Interception,
		"The server speaks MQTT but is not DPS.",
		"Check endpoint in dpsd.toml: it must be a device provisioning endpoint, not a hub or another broker.", "", ""},
	{ProtocolViolation, Transient,
		"The server violated the MQTT or WebSocket protocol.",
		"The cause is usually a middlebox or a server that is not DPS; see the journal.", "", ""},

	{Unauthorized, Credential,
		"DPS does not accept the credential (401).",
		"If you use a key, first check that it is the device's own key, not the enrollment group's (dpsd derive-key), and that the registration ID has no upper-case letters. Then compare the key or certificate with the enrollment, and check the gateway's clock.", "", ""},
	{EnrollmentNotFound, Enrollment,
		"DPS has no enrollment for this registration ID (404).",
		"Create the enrollment, or correct id_scope and registration_id.", "", ""},
	{EnrollmentDisabled, Enrollment,
		"The enrollment is disabled.",
		"Enable the enrollment in DPS. dpsd retries automatically.", "", ""},
	{AllocationFailed, Enrollment,
		"DPS accepted the gateway but could not assign it to a hub.",
		"Check the enrollment's allocation policy and linked hubs; errorCode and trackingId help to find the cause.", "", ""},
	{RequestRefused, Enrollment,
		"DPS refused the request.",
		"See errorCode and message; check api_version, registration_id and payload_file.",
		APIVersion, "Remove api_version from dpsd.toml, and, if DPS refuses 2026-11-01, also the table [certificate], so that dpsd uses 2019-03-31; then run: systemctl restart --no-block dpsd. Azure Government and Azure in China support newer versions later than the public cloud."},
	{Throttled, Throttling,
		"DPS is throttling requests (429).",
		"No action is needed. dpsd waits as long as DPS asks.", "", ""},
	{ServiceError, Transient,
		"DPS reported an internal error.",
		"No action is needed unless this continues; if it does, give trackingId to Azure support.", "", ""},
	{OperationLost, Transient,
		"DPS no longer knows the registration in progress; dpsd restarts it.",
		"No action is needed.", "", ""},
	{NoReply, Transient,
		"DPS did not answer in time.",
		"No action is needed unless this continues; if it does, check the link, and increase response_timeout if it is slow.", "", ""},
	{MalformedReply, Transient,
		"The answer from DPS is unusable.",
		"See the cause in the journal. If it names the device ID or the payload, correct the enrollment or its custom allocation. Otherwise, something on the path is modifying the replies.", "", ""},

	{CertificateNotIssued, Enrollment,
		"DPS has assigned the gateway but has not issued a certificate.",
		"Set a credential policy in the enrollment, and link DPS and the hub to the namespace of that policy. If DPS refused the request, see the cause: the policy may not allow key_type. To use the gateway without a certificate, set request = \"when-offered\" in [certificate].", "", ""},
	{CertificateRejected, Enrollment,
		"DPS has issued a certificate that dpsd cannot use. The previous certificate, if any, stays in place.",
		"See the cause. If it names a date, check this gateway's clock. Otherwise, check the credential policy of the enrollment, and whether something on the path is modifying the replies.", "", ""},
	{CertificateUnreadable, Input,
		"A file of the issued certificate exists but cannot be read. dpsd neither overwrites it nor requests another certificate.",
		"Make the file named in the cause readable by the user dpsd. If the key is lost, remove what the cause names; dpsd then requests a new certificate.", "", ""},

	{HubRefused, Enrollment,
		"The assigned hub refused the device (401, 403 or 404).",
		"Check in the hub that the device exists, is enabled, and has the key or certificate of this gateway. If the device was moved to another hub, run: dpsd reprovision. Otherwise, check this gateway's clock.", "", ""},
	{HubThrottled, Throttling,
		"The assigned hub is throttling requests (429).",
		"No action is needed: dpsd waits as long as the hub asks. If this continues, the hub has too few units for its devices.", "", ""},
	{HubUnavailable, Transient,
		"The assigned hub could not be reached over HTTPS, or it returned an error or an unusable answer.",
		"No action is needed unless this continues; if it does, make sure that the firewall and the proxy allow connections to port 443 of the hub. See the cause in the journal.", "", ""},
	{ModuleRefused, Enrollment,
		"dpsd cannot create, change or remove the identity of a module at the assigned hub.",
		"See the cause. If the module belongs to another program, use another name in the scope of the [[consumer]], or remove the module from the device at the hub. If the device has too many modules, remove those that are not needed.", "", ""},

	{ModulesUnreadable, Storage,
		"modules.json exists but cannot be read, or a newer dpsd wrote it. dpsd neither overwrites it nor changes module identities.",
		"Make the file named in the cause readable by the user dpsd. If a newer dpsd wrote it, reinstall that version, or remove the file; dpsd then gives the modules new keys.", "", ""},

	{StateUnwritable, Storage,
		"The state directory is not writable; dpsd keeps the assignment in memory and in the runtime directory.",
		"Fix the problem named in the cause: free up space; make the directory writable by the user dpsd; if a single file is mounted in the directory, mount the whole directory instead; or restart dpsd after mounting or unmounting a file system. dpsd retries automatically. If the directory is gone, restarting dpsd recreates it.", "", ""},
	{StateNewerSchema, Storage,
		"The state file was written by a newer dpsd; it is kept and not overwritten.",
		"Reinstall the newer version of dpsd that wrote the record, or remove the state files to start with a new record.", "", ""},
	{StateLocked, Storage,
		"Another dpsd uses the state directory.",
		"Only one dpsd can use a state directory. Stop the other dpsd, or give this one its own [state] directory.", "", ""},

	{Internal, Transient,
		"dpsd encountered a failure that it cannot classify.",
		"Please report it with the journal entry.", "", ""},
}
