#!/bin/sh
# uplink.sh: sends the load of this gateway to its hub every minute, with the certificate that DPS
# issues. It requires the Debian package mosquitto-clients. Its unit needs these lines;
# consumer.service and certificate.conf show the others:
#
#   ExecStart=/usr/local/lib/uplink.sh
#   SupplementaryGroups=dpsd-certificate
#
# After a renewal: nothing needs to be reloaded, because the script opens a connection for each
# message. It resolves the link "current" once for each, so that both files belong to one pair even
# during a renewal.
set -u
while :; do
	. /var/lib/dpsd/state.env
	pair=$(readlink -e /var/lib/dpsd/certificate/current)
	read -r load _ </proc/loadavg
	mosquitto_pub -V mqttv311 -h "$DPSD_ASSIGNED_HUB" -p 8883 --capath /etc/ssl/certs \
		--cert "$pair/chain.pem" --key "$pair/key.pem" \
		-i "$DPSD_DEVICE_ID" -u "$DPSD_ASSIGNED_HUB/$DPSD_DEVICE_ID/?api-version=2021-04-12" \
		-q 1 -t "devices/$DPSD_DEVICE_ID/messages/events/" -m "{\"load\":$load}" ||
		echo "The message was not sent." >&2
	sleep 60
done
