package enroll

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Authority is a certificate authority that an enrollment trusts.
type Authority struct {
	Certificate *x509.Certificate
	// File is the file that has the certificate, or "" if the enrollment itself has it.
	File string
}

// DeviceKey returns the raw key with which a device must sign its tokens: the primary key of its
// individual enrollment, or else the key that is derived from that of the first group with keys.
// If there is no such key, the error says why.
func (entries Entries) DeviceKey(registrationID string) ([]byte, error) {
	fitting, individual := entries.of(registrationID)
	for _, n := range fitting {
		switch {
		case len(n.keys) == 0:
		case individual:
			return n.keys[0], nil
		default:
			return DeriveKey(n.keys[0], registrationID), nil
		}
	}
	if individual {
		return nil, fmt.Errorf("the individual enrollment of %q requires a certificate", registrationID)
	}
	return nil, errors.New("no enrollment group has symmetric keys")
}

// DeviceAuthorities returns the authorities that can issue a device's certificate, in the order
// of the enrollments. If there is none, the error says why.
func (entries Entries) DeviceAuthorities(registrationID string) ([]Authority, error) {
	fitting, individual := entries.of(registrationID)
	var all []Authority
	for _, n := range fitting {
		for _, c := range n.cas {
			all = append(all, Authority{Certificate: c, File: n.caFile})
		}
	}
	switch {
	case len(all) > 0:
		return all, nil
	case !individual:
		return nil, errors.New("no enrollment group trusts a certificate authority")
	case len(fitting[0].thumbprints) > 0:
		return nil, fmt.Errorf("the individual enrollment of %q accepts only the certificate with thumbprint %s", registrationID, strings.Join(fitting[0].thumbprints, " or "))
	}
	return nil, fmt.Errorf("the individual enrollment of %q requires a symmetric key", registrationID)
}

// Assignment returns the hub that the first enrollment of a device assigns to a request without
// a payload, and the device's ID at that hub.
func (entries Entries) Assignment(registrationID string) (hub, deviceID string) {
	deviceID = registrationID
	fitting, _ := entries.of(registrationID)
	if len(fitting) == 0 {
		return "", deviceID
	}
	if fitting[0].DeviceID != "" {
		deviceID = fitting[0].DeviceID
	}
	return fitting[0].Place(registrationID, deviceID, nil).Hub.Name, deviceID
}
