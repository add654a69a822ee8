package refusal

// Finding is the result of a check of the hub.
type Finding string

// The findings. Only a check that signs in over HTTPS has the first two.
const (
	Confirmed  Finding = "confirmed"  // the verified hub refuses the device: 401, 403 or 404, or its certificate in the TLS handshake
	Accepted   Finding = "accepted"   // the verified hub accepts the device
	Verified   Finding = "verified"   // the hub has proved its name; nothing else is known
	Unverified Finding = "unverified" // the server that answered has not proved the hub's name
	Gone       Finding = "gone"       // the hub cannot be reached, but DPS can
	Offline    Finding = "offline"    // neither the hub nor DPS can be reached
)

// Findings returns all findings.
func Findings() []Finding {
	return []Finding{Confirmed, Accepted, Verified, Unverified, Gone, Offline}
}

// means returns the consequence of the finding after reports of the given kind: Reprovisioning or
// None, and the reason as a sentence. last is the code that caused the check.
func (f Finding) means(kind Kind, last Code) (Action, string) {
	switch f {
	case Confirmed:
		return Reprovisioning, "The hub also refused a request that dpsd sent as the device."
	case Accepted:
		return None, "The hub accepts the device, so the cause is in the service, for example an old token. dpsd verifies the module identities."
	case Unverified:
		return None, "The server that answered has not proved that it is the hub, for example because a proxy intercepts TLS. For details, run dpsd check."
	case Offline:
		return None, "Neither the hub nor DPS can be reached, so the cause is the network of this gateway. For details, run dpsd check."
	case Verified:
		if last == Unreachable {
			return None, "dpsd reaches the hub, so the cause is in the service or in its connection to the hub, for example a blocked port. For details, run dpsd check."
		}
		return Reprovisioning, "The hub has proved its name, so the reports are about the right hub."
	case Gone:
		if kind == Identity {
			return None, "The hub refused the identity, but can no longer be reached, so dpsd cannot verify the reports."
		}
		return Reprovisioning, "The hub cannot be reached, but DPS can."
	}
	return None, "The check of the hub has no result."
}
