// Package mqttv3 speaks MQTT 3.1.1 through paho.golang, a client that speaks
// only MQTT 5.
//
// [Conn] sits between the two: a net.Conn that shows paho a version 5 wire and
// the server a level 4 wire, packet by packet. paho keeps doing the work of a
// client: packet identifiers, acknowledgements, the reading loop. [Client] is
// the part the rest of the program uses. It holds one connection from CONNECT
// to DISCONNECT and is never used again after that.
//
//	Client ── paho.Client ── v5 ── Conn ── 3.1.1 ── net.Conn
//
// codec.go reads the packets of a server and writes those of a client. transcode.go
// does the same for the few shapes of version 5 that paho writes and reads, and knows
// which packet may follow which. Neither does I/O. conn.go does the I/O, client.go is
// the only file that knows paho.
//
// The dialect is smaller than the standard, because the provisioning service's
// is: clean sessions, QoS 0 and 1, one topic filter in a SUBSCRIBE, no UNSUBSCRIBE, no
// will, no retained messages of our own. Everything else is refused with an error.
//
// Clauses in the comments, such as [MQTT-3.2.0-1], are those of the OASIS
// standard "MQTT Version 3.1.1".
package mqttv3
