package fault

import "slices"

// Entry describes a code to a person.
type Entry struct {
	Code  Code
	Class Class
	// Summary says what happened, in one line.
	Summary string
	// Advice says what to do about it, in one line.
	Advice string
	// When names a circumstance in which Instead is the advice; "" for none.
	When    Circumstance
	Instead string
}

// AdviceWhen says what to do about it in a circumstance.
func (e Entry) AdviceWhen(c Circumstance) string {
	if c != "" && c == e.When {
		return e.Instead
	}
	return e.Advice
}

// Circumstance is what is known of a failure beside its code and changes what to do about
// it, in words that follow "when".
type Circumstance string

// The circumstances.
const (
	// OnlyMQTT: MQTT over TLS, at another port than 443, is all that was tried.
	OnlyMQTT Circumstance = "only port 8883 was tried"
	// AtHub: it is the assigned hub that was tried, which dpsd check does.
	AtHub Circumstance = "the assigned hub was tried"
	// Hidden: the file is in a place that the sandbox of dpsd.service hides.
	Hidden Circumstance = "the file is below /home, /root or /run/user"
	// SovereignCloud: the name belongs to Azure Government or to Azure in China.
	SovereignCloud Circumstance = "the name ends with .us or .cn"
	// APIVersion: the service names the API version in its refusal.
	APIVersion Circumstance = "the service does not support the API version"
)

// Catalogue returns every code, in the order of the stages of an attempt.
func Catalogue() []Entry { return slices.Clone(catalogue) }

// Describe returns the entry of a code. A code that is not in the catalogue
// gives the entry of Internal.
func Describe(code Code) Entry {
	for _, e := range catalogue {
		if e.Code == code {
			return e
		}
	}
	return Describe(Internal)
}

// catalogue is never changed after start-up.
var catalogue = []Entry{
	{ConfigurationInvalid, Configuration,
		"The configuration file cannot work as written.",
		"Correct dpsd.toml at the place that the message names. A service that has ended then needs: systemctl restart --no-block dpsd. A running one applies the correction automatically before its first READY, and after that with: systemctl reload dpsd", "", ""},

	{InputUnreadable, Input,
		"An input that the configuration names (serial number, machine ID, host name, payload) is missing or unreadable.",
		"Create the file if it does not exist, and make it readable for the user dpsd. If the host name is missing, set it: hostnamectl set-hostname NAME. dpsd looks at its inputs every 10 seconds.",
		Hidden, "dpsd.service cannot see files there: put the file below /etc/dpsd, readable for the user dpsd, and correct its path in dpsd.toml."},
	{InputInvalid, Input,
		"A file that the configuration names holds something that cannot be used.",
		"Put a registration ID (letters, digits, - . _ :) or, for payload_file, a JSON object there. dpsd looks at it every 10 seconds.", "", ""},
	{CredentialUnreadable, Input,
		"A key, certificate or proxy password is missing or unreadable.",
		"For \"file:\", create the file if it does not exist, and give it to the group dpsd-keys with mode 0640; dpsd looks at it every 10 seconds. For \"credential:\", provide it to systemd, then: systemctl restart --no-block dpsd",
		Hidden, "dpsd.service cannot see files there: put the file into /etc/dpsd/keys, with group dpsd-keys and mode 0640, and correct its path in dpsd.toml. Or provide it as a systemd credential."},
	{CredentialEncrypted, Input,
		"systemd handed over a credential that is still encrypted.",
		"Add a drop-in with LoadCredentialEncrypted=NAME for this credential, then: systemctl restart --no-block dpsd", "", ""},
	{CredentialInvalid, Input,
		"A key, certificate or proxy password was read but cannot be used.",
		"Check that the key is the base64 text of the portal, that certificate and private key belong together, and that the CN is the registration ID; a password is one line. dpsd looks at a \"file:\" every 10 seconds; for a \"credential:\", run: systemctl restart --no-block dpsd", "", ""},
	{CertificateExpired, Credential,
		"The device certificate was refused, and this gateway's clock is outside its validity or that of its chain.",
		"If the dates are right, correct the clock. Otherwise renew the certificate that the cause names, and install the chain: dpsd reads a \"file:\" again when it changes; for a \"credential:\", run: systemctl restart --no-block dpsd", "", ""},

	{NetworkUnreachable, Offline,
		"There is no route to the service; nothing was sent.",
		"Check cable, modem and default route; dpsd connects as soon as there is a way.", "", ""},
	{ResolverMissing, Offline,
		"No name server could be asked.",
		"Check that /etc/resolv.conf exists and names a name server (the service that manages the network usually writes it), and that this server is running and reachable.", "", ""},
	{DNSFailed, Transient,
		"The endpoint's name could not be resolved.",
		"Check the spelling of endpoint in dpsd.toml, and the name server.",
		AtHub, "Check the name server. If it works, the hub was removed or renamed: dpsd reprovision asks DPS for the current one."},
	{DNSBlocked, Interception,
		"The name of the endpoint resolves to this gateway itself (0.0.0.0 or 127.x); a DNS blocklist does that.",
		"Allow the name in the filtering name server (Pi-hole, AdGuard, the router's filter), and remove it from /etc/hosts; getent ahosts NAME shows the addresses that this gateway uses.", "", ""},
	{TCPRefused, Transient,
		"The connection was refused.",
		"Check the name and port of the server, and that the firewall allows the port.",
		OnlyMQTT, "Check endpoint, and that the firewall allows mqtt_port (8883); or let dpsd try port 443 too: protocols = [\"mqtt\", \"websocket\"]."},
	{ConnectTimeout, Transient,
		"The connection was not up within connect_timeout.",
		"Check that the firewall allows the port; on a slow link, raise connect_timeout.",
		OnlyMQTT, "Check that the firewall allows mqtt_port (8883), or let dpsd try port 443 too: protocols = [\"mqtt\", \"websocket\"]. On a slow link, raise connect_timeout."},
	{ConnectionLost, Transient,
		"The connection broke off.",
		"Nothing, unless it goes on; then look at the link, the proxy, and the other faults in the journal.", "", ""},
	{ProxyAddress, Input,
		"HTTPS_PROXY holds something that is no address of a proxy.",
		"Correct it with: systemctl edit dpsd, as http://host:port; or set proxy in dpsd.toml. A user or a password with special characters: percent-encode it (in Environment= with %% for each %), or use proxy_user and proxy_password. Then restart dpsd.", "", ""},
	{ProxyUnreachable, Transient,
		"There is no connection to the proxy.",
		"Check name and port in proxy or HTTPS_PROXY, and that the proxy runs.", "", ""},
	{ProxyUntrusted, Interception,
		"The proxy's own certificate is not trusted, has expired or is for another name.",
		"Set proxy_ca_file to the authority that issued it, and use the proxy's name as the certificate has it.", "", ""},
	{ProxyScheme, Transient,
		"The address of the proxy begins with http:// although the proxy expects TLS, or with https:// although it does not.",
		"Correct the beginning of the address in proxy or HTTPS_PROXY: https:// only if the proxy itself expects TLS.", "", ""},
	{ProxyAuth, Transient,
		"The proxy wants to be told who we are, or does not accept it (407 or 401).",
		"Set proxy_user and proxy_password. dpsd offers basic authentication; what the proxy accepts is in the cause.", "", ""},
	{ProxyAuthUnsupported, Transient,
		"The proxy accepts only authentication that dpsd does not support, such as NTLM or Negotiate (407 or 401).",
		"dpsd supports basic authentication. Let the proxy allow the endpoint without authentication, or offer Basic to this gateway; or run a local proxy that signs in (cntlm, px) and set proxy to its address.", "", ""},
	{ProxyUpstream, Transient,
		"The proxy allowed the connection, but could not establish it (502, 503 or 504).",
		"Check on the proxy that it can resolve the endpoint's name and reach its port: its name server, its firewall and its own upstream proxy.",
		OnlyMQTT, "Check on the proxy that it can resolve the endpoint's name and reach mqtt_port (8883), or let dpsd try port 443 too: protocols = [\"mqtt\", \"websocket\"]."},
	{ProxyRefused, Transient,
		"The proxy would not connect us, or did not answer as a proxy does.",
		"Allow CONNECT to the endpoint and port in the proxy. If it hangs up without an answer, it may expect TLS; if so, write its address with https://. See the cause in the journal.",
		OnlyMQTT, "Allow CONNECT to the endpoint's mqtt_port (8883) in the proxy, or let dpsd try port 443 too, which most proxies allow: protocols = [\"mqtt\", \"websocket\"]. If it hangs up without an answer, it may expect TLS; if so, write its address with https://. See the cause in the journal."},

	{CAUnreadable, Input,
		"ca_file or proxy_ca_file is missing, unreadable or holds no certificate.",
		"Put PEM certificates there, readable for the user dpsd. dpsd looks at the file every 10 seconds.",
		Hidden, "dpsd.service cannot see files there: put the certificates below /etc/dpsd, readable for the user dpsd, and correct the path in dpsd.toml."},
	{TLSUntrusted, Interception,
		"The server's certificate is signed by somebody this gateway does not trust.",
		"If a proxy inspects TLS here, exempt the endpoint from it or set ca_file; otherwise update ca-certificates.",
		SovereignCloud, "Set ca_file to a PEM file with the DigiCert Global Root CA (G1), which Azure Government and Azure in China still use and which distributions removed in April 2026: https://cacerts.digicert.com/DigiCertGlobalRootCA.crt.pem"},
	{TLSIntercepted, Interception,
		"Somebody on the way answers in the service's place: who does is in the cause, as the issuer of the certificate.",
		"Have the endpoint exempted from TLS inspection; a device certificate cannot pass it. With keys alone, ca_file may name the issuer; then a refusal in the cause may also be the key's fault.", "", ""},
	{TLSWrongHost, Interception,
		"The server's certificate is for another name.",
		"Check endpoint in dpsd.toml; if that is right, something on the path answers in place of the service.",
		AtHub, "Something on the path answers in place of the hub: look for a proxy or a firewall that inspects TLS."},
	{TLSExpired, Transient,
		"The server's certificate has expired, by this gateway's clock.",
		"Check the clock (timedatectl); if that is right, something on the path answers in place of the service.", "", ""},
	{TLSVersion, Transient,
		"The server offers nothing newer than TLS 1.1.",
		"Something on the path answers in place of the service, or is very old; DPS itself speaks TLS 1.2.", "", ""},
	{TLSFailed, Transient,
		"The TLS handshake failed.",
		"See the cause in the journal; look for middleboxes between gateway and service.", "", ""},
	{NotTLS, Interception,
		"What answered does not speak TLS.",
		"Check endpoint and port; something else listens there, or a middlebox answers.",
		AtHub, "Something on the path answers in place of the hub: look for a proxy, a firewall or a login page."},
	{CaptivePortal, Interception,
		"A web page answered instead of the service.",
		"The network wants a login or an acceptance page first; provide it, or use another network.", "", ""},
	{WebSocketRefused, Interception,
		"The server would not switch to WebSocket.",
		"Check that the proxy or firewall lets WebSocket through, and that endpoint is a DPS endpoint.", "", ""},
	{ClockImplausible, Clock,
		"This gateway's clock is wrong, which explains the failure.",
		"Set the clock or let NTP do it; dpsd tries again as soon as the clock is stepped.", "", ""},

	{CertificateRefused, Credential,
		"The service refused the device certificate during the TLS handshake.",
		"Check that the certificate or its issuer is enrolled and not revoked, and that the file holds the intermediates.", "", ""},
	{NotMQTT, Interception,
		"What answered inside TLS does not speak MQTT.",
		"Check endpoint and port; something else listens there, or a middlebox answers.", "", ""},
	{ConnackRefused, Credential,
		"The service refused the credential (CONNACK 4 or 5).",
		"With a key, check first that it is the device's own and not the enrollment group's (dpsd derive-key), and that the registration ID has no upper-case letters. Then check the key or certificate, and the gateway's clock.", "", ""},
	{ConnackUnavailable, Transient,
		"The service was reached, but it answered that it is unavailable (CONNACK 3).",
		"Check id_scope first: DPS also gives this answer to a wrong one, even if network and port are right. If id_scope is right, DPS is busy or under maintenance; dpsd tries again automatically.", "", ""},
	{ConnackRejected, Enrollment,
		"The service refused the CONNECT itself (CONNACK 1 or 2).",
		"Check id_scope, registration_id and that endpoint is a DPS endpoint.", "", ""},
	{NotDPS, Interception,
		"An MQTT server answered that is not DPS.",
		"Check endpoint in dpsd.toml: it must be a device provisioning endpoint, not a hub or another broker.", "", ""},
	{ProtocolViolation, Transient,
		"The peer broke the rules of MQTT or of WebSocket.",
		"Usually a middlebox or a server that is not DPS; see the cause in the journal.", "", ""},

	{Unauthorized, Credential,
		"DPS does not accept the credential (401).",
		"With a key, check first that it is the device's own and not the enrollment group's (dpsd derive-key), and that the registration ID has no upper-case letters. Then check the key or certificate against the enrollment, and the gateway's clock.", "", ""},
	{EnrollmentNotFound, Enrollment,
		"DPS knows no enrollment for this registration ID (404).",
		"Create the enrollment, or correct id_scope and registration_id.", "", ""},
	{EnrollmentDisabled, Enrollment,
		"The enrollment is disabled.",
		"Enable it in DPS; dpsd asks again automatically.", "", ""},
	{AllocationFailed, Enrollment,
		"DPS accepted the gateway but could not assign it to a hub.",
		"Look at the enrollment's allocation policy and linked hubs, with errorCode and trackingId.", "", ""},
	{RequestRefused, Enrollment,
		"DPS refused the request.",
		"See errorCode and message; check api_version, registration_id and payload_file.",
		APIVersion, "Remove api_version from dpsd.toml, so that dpsd uses 2019-03-31, then: systemctl restart --no-block dpsd. Azure Government and Azure in China support newer versions later than the public cloud."},
	{Throttled, Throttling,
		"DPS asks us to slow down (429).",
		"Nothing; dpsd waits as long as the service asks.", "", ""},
	{ServiceError, Transient,
		"DPS had an error of its own.",
		"Nothing, unless it goes on; then give trackingId to Azure support.", "", ""},
	{OperationLost, Transient,
		"DPS no longer knows the running registration; it is started anew.",
		"Nothing.", "", ""},
	{NoReply, Transient,
		"DPS did not answer in time.",
		"Nothing, unless it goes on; then look at the link, and raise response_timeout on slow ones.", "", ""},
	{MalformedReply, Transient,
		"DPS answered something that cannot be used.",
		"See the cause in the journal. If it names the device ID or the payload, correct the enrollment or its custom allocation; else something on the way changes the answers.", "", ""},

	{StateUnwritable, Storage,
		"The state directory cannot be written; the assignment is kept in memory and under the runtime directory.",
		"Correct what the cause names: free space, make the directory writable for the user dpsd, mount the directory instead of a file in it, or restart dpsd after a mount or an unmount; dpsd tries again automatically. If the directory is gone, a restart of dpsd creates it again.", "", ""},
	{StateNewerSchema, Storage,
		"The state file was written by a newer dpsd; it is kept and not overwritten.",
		"Install that dpsd again, or remove the state files to start afresh.", "", ""},
	{StateLocked, Storage,
		"Another dpsd uses the state directory.",
		"One state directory serves one dpsd: stop the other, or give this one its own [state] directory.", "", ""},

	{Internal, Transient,
		"dpsd met a failure that it has no name for.",
		"Please report it, with the journal's entry.", "", ""},
}
