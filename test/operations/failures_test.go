package operations

// failures maps the names of blocks to the failures of a gateway: the block NAME shows the failure,
// NAME-over its end, and NAME-… further output.
var failures = map[string]func(*gateway){
	"well": func(g *gateway) {
		g.serve("")
		g.start()
		g.until("DPSD_EVENT=assigned")
		g.begin("well")
		g.log()
		g.status("confirmed")
		g.show("dpsd check")
		g.begin("attempts")
		g.show("dpsd status --attempts | tail -n 1")
		const socket = "curl -s --unix-socket /run/dpsd/dpsd.sock "
		g.begin("socket-status")
		g.show(socket + "http://dpsd/v1/status | jq '{health, ready, text, confirmed, next}'")
		g.begin("socket-events")
		g.show(socket + "--max-time 1 -N http://dpsd/v1/events | head -n 1 | jq -c '{health, phase, generation: .identity.generation}'")
		g.begin("socket-metrics")
		g.show(socket + "http://dpsd/metrics | grep -v -e '^#' -e ' 0$' -e _bucket")
		g.begin("socket-reprovision")
		g.show(socket + "-X POST http://dpsd/v1/reprovision | jq .")
		g.until("DPSD_EVENT=asked-for")
	},

	"no-network": func(g *gateway) {
		g.serve("")
		g.write("/etc/hosts", "127.0.0.1 localhost\n")
		g.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")
		g.must("ip", "link", "set", "lo", "down")
		g.start()
		g.until("DPSD_EVENT=fault")
		g.begin("no-network")
		g.log()
		g.status("next")
		g.check()
		g.must("ip", "link", "set", "lo", "up")
		g.write("/etc/hosts", "127.0.0.1 localhost global.azure-devices-provisioning.net dpsd-sim.azure-devices.net\n")
		g.begin("no-network-over")
		g.last("assigned")
	},

	"wrong-key": func(g *gateway) {
		g.serve("")
		right := g.read("/etc/dpsd/keys/device.key")
		g.write("/etc/dpsd/keys/device.key", "bm90IHRoZSBrZXkgb2YgdGhpcyBkZXZpY2UsIGJ1dCBvbmU=\n")
		g.start()
		g.until("DPSD_EVENT=fault")
		g.begin("wrong-key")
		g.log()
		g.status("next")
		g.check()
		g.write("/etc/dpsd/keys/device.key", right)
		g.begin("wrong-key-over")
		g.last("assigned")
	},

	"disabled": func(g *gateway) {
		enrollment := func(state string) {
			g.enroll("[[group]]\nname = \"keys\"\ntype = \"symmetric-key\"\nprimary_key_file = \"group-key\"\n" + state)
		}
		g.serve("")
		g.start()
		g.until("DPSD_EVENT=assigned")
		g.stop(&g.dpsd)
		enrollment("disabled = true\n")
		g.serve("")
		g.start()
		g.until("DPSD_EVENT=fault")
		g.begin("disabled")
		g.log()
		g.status("next")
		g.check()
		enrollment("")
		g.serve("")
		g.begin("disabled-over")
		g.show("dpsd reprovision --wait")
		g.last("assigned")
	},

	"expired": func(g *gateway) {
		cert, key := g.certificate(368)
		g.write("/etc/dpsd/keys/device.pem", cert)
		g.write("/etc/dpsd/keys/device-key.pem", key)
		g.configure("[[credential]]\ntype        = \"x509\"\ncertificate = \"file:/etc/dpsd/keys/device.pem\"\nprivate_key = \"file:/etc/dpsd/keys/device-key.pem\"\n")
		g.serve("")
		g.start()
		g.until("DPSD_EVENT=certificate-expired")
		g.begin("expired")
		g.log()
		g.status("next")
		g.check()
		cert, key = g.certificate(0)
		g.write("/etc/dpsd/keys/device-key.pem", key)
		g.write("/etc/dpsd/keys/device.pem", cert)
		g.begin("expired-over")
		g.last("assigned")
	},

	"no-policy": func(g *gateway) {
		enrollment := func(policy string) {
			g.enroll("[[group]]\nname = \"keys\"\ntype = \"symmetric-key\"\nprimary_key_file = \"group-key\"\n" + policy)
			g.serve("[settings]\npolls = 0\nwithout_policy = \"assign\"\n")
		}
		g.withCertificates()
		enrollment("no_certificates = true\n")
		g.start()
		g.until("DPSD_EVENT=fault")
		g.begin("no-policy")
		g.log()
		g.status("next")
		g.check()
		enrollment("")
		g.begin("no-policy-over")
		g.show("dpsd certificate renew --wait")
		g.last("certificate-issued")
	},

	"portal": func(g *gateway) {
		g.serve("[[rule]]\non = \"accept\"\ngarbage = \"HTTP/1.1 302 Found\\r\\nLocation: http://portal.example/login\\r\\nContent-Length: 0\\r\\n\\r\\n\"\n")
		g.start()
		g.until("DPSD_EVENT=fault")
		g.begin("portal")
		g.log()
		g.status("next")
		g.check()
		g.serve("")
		g.begin("portal-over")
		g.last("assigned")
	},

	"full-disk": func(g *gateway) {
		g.serve("")
		g.start()
		g.until("DPSD_EVENT=assigned")
		g.stop(&g.dpsd)
		_ = g.command("dd", "if=/dev/zero", "of=/var/lib/fill", "bs=64k").Run() // until it is full
		_ = g.command("dd", "if=/dev/zero", "of=/var/lib/fill-the-rest", "bs=1").Run()
		g.serve("[[rule]]\non = \"register\"\nassigned_hub = \"contoso-eu.azure-devices.net\"\n")
		g.start()
		g.until("DPSD_EVENT=fault")
		g.begin("full-disk")
		g.log()
		g.status("next")
		g.show("dpsd check --offline 2>&1 | grep -v -e ^ok -e ^skipped")
		g.show("cat /run/dpsd/state.env")
		must(g.command("rm", "/var/lib/fill").Run())
		g.begin("full-disk-over")
		g.last("assigned")
		g.show("ls /run/dpsd")
	},

	"clock": func(g *gateway) {
		g.serve("[[rule]]\non = \"tls\"\nserver_certificate = \"not-yet-valid\"\n")
		g.start()
		g.until("DPSD_EVENT=fault")
		g.begin("clock")
		g.log()
		g.status("next")
		g.check()
	},
}
