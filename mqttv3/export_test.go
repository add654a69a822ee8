package mqttv3

// Done is closed when the connection has ended, by Close or otherwise.
func (c *Client) Done() <-chan struct{} { return c.conn.Done() }

// Err returns why the connection ended: ErrClosed, with the cause unless Close ended it. It
// is nil while the connection is open.
func (c *Client) Err() error { return closed(c.conn.Err()) }
