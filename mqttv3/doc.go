// Package mqttv3 implements an MQTT 3.1.1 client with paho.golang, which supports only MQTT
// 5.
//
// [Conn] is a net.Conn that translates packets between paho, which uses version 5, and the
// server, which uses protocol level 4. paho does the work of a client: packet identifiers,
// acknowledgements, the read loop. [Client] is the interface for the rest of the program.
// It represents one connection from CONNECT to DISCONNECT and is not reused.
//
//	Client ── paho.Client ── v5 ── Conn ── 3.1.1 ── net.Conn
//
// codec.go decodes the packets of a server and encodes those of a client. transcode.go does
// the same for the packets of version 5 that paho writes and reads, and checks their order.
// Neither does I/O. conn.go does the I/O, and only client.go uses paho.
//
// Like the provisioning service, the package supports only a part of the standard: clean
// sessions, QoS 0 and 1, one topic filter in a SUBSCRIBE, no UNSUBSCRIBE, no will, and no
// sending of retained messages. Everything else is an error.
//
// Clauses in the comments, such as [MQTT-3.2.0-1], are those of the OASIS
// standard "MQTT Version 3.1.1".
package mqttv3
