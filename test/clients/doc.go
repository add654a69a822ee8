// Package clients tests dpsd-sim with clients that other people have written: Microsoft's SDKs
// for Node, Python and Java, MQTT.js, Paho, requests and mosquitto. It also follows the recipes of
// docs/simulator.md, and runs the programs of docs/consumers.md with dpsd. "make test-clients" runs it.
//
// Each client runs as in "dpsd-sim exec -- CLIENT", in a network namespace of its own: the
// service's own ports, 8883 and 443, are free there, and there is no other network.
package clients
