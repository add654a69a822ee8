package consumer

import (
	"sync"
	"time"
)

// Usage counts what a consumer has done since the daemon started. Its zero value is ready to
// use, and it is safe for concurrent use.
type Usage struct {
	mu     sync.Mutex
	counts Counts
	issued chan struct{} // closed when the next token is issued
}

// Counts are the numbers in a Usage.
type Counts struct {
	Requests uint64 // all requests, including those that were limited or wrong
	Limited  uint64 // requests and connections beyond a limit
	Tokens   uint64 // tokens issued
	Refused  uint64 // reports that the hub refuses the consumer, as far as they were accepted
	// Issued and Expiry are the times of the last token; zero before the first one.
	Issued, Expiry time.Time
}

// Counts returns the current numbers.
func (u *Usage) Counts() Counts {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.counts
}

// count increments a number.
func (u *Usage) count(number func(*Counts) *uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	*number(&u.counts)++
}

// token counts a token.
func (u *Usage) token(issued, expiry time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.counts.Tokens++
	u.counts.Issued, u.counts.Expiry = issued, expiry
	if u.issued != nil {
		close(u.issued)
		u.issued = nil
	}
}

// watch returns the current numbers, and a channel that is closed when the next token is issued.
func (u *Usage) watch() (Counts, <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.issued == nil {
		u.issued = make(chan struct{})
	}
	return u.counts, u.issued
}

func requests(c *Counts) *uint64 { return &c.Requests }
func limited(c *Counts) *uint64  { return &c.Limited }
func refused(c *Counts) *uint64  { return &c.Refused }
