package signer

import (
	"bufio"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"slices"
)

// Server answers the requests of clients about one key.
type Server struct {
	Public crypto.PublicKey
	// Schemes are the schemes that Sign supports.
	Schemes []Scheme
	// Sign signs a digest, which has the length of the scheme's hash function. If it returns an
	// error that is not a *Failure, the server answers CodeUnavailable.
	Sign func(scheme Scheme, digest []byte) ([]byte, error)
	// Err, if not nil, is the answer to every valid request.
	Err error
}

// Serve answers the requests on a connection until the client closes it. The caller sets
// deadlines, and closes the connection.
func (s *Server) Serve(conn io.ReadWriter) error {
	read := bufio.NewReaderSize(conn, maxLine)
	for {
		line, err := read.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, bufio.ErrBufferFull): // where the next request begins is unknown
			err = &Failure{CodeUnsupported, "the request is too long"}
			return errors.Join(err, write(conn, failureAnswer(err)))
		case err != nil:
			return err
		}
		reply, err := s.answer(line)
		if err != nil {
			reply = failureAnswer(err)
		}
		if err := write(conn, reply); err != nil {
			return err
		}
	}
}

// answer returns the answer to a request.
func (s *Server) answer(line []byte) (answer, error) {
	r, err := parseRequest(line)
	if err != nil {
		return answer{}, &Failure{CodeUnsupported, err.Error()}
	}
	if s.Err != nil {
		return answer{}, s.Err
	}
	switch r.Request {
	case requestPublicKey:
		der, err := x509.MarshalPKIXPublicKey(s.Public)
		return answer{PublicKey: der}, err
	case requestSchemes:
		return answer{Schemes: s.Schemes}, nil
	case requestSign:
		if !slices.Contains(s.Schemes, r.Scheme) {
			return answer{}, &Failure{CodeUnsupported, "the scheme is not supported"}
		}
		if len(r.Digest) != schemes[r.Scheme].hash.Size() {
			return answer{}, &Failure{CodeUnsupported, "the digest has the wrong length for the scheme"}
		}
		signature, err := s.Sign(r.Scheme, r.Digest)
		return answer{Signature: signature}, err
	}
	return answer{}, &Failure{CodeUnsupported, "the request is not known"}
}

// failureAnswer returns the answer that reports an error.
func failureAnswer(err error) answer {
	failure := &Failure{CodeUnavailable, err.Error()}
	errors.As(err, &failure)
	return answer{Error: failure.Code, Message: clip(failure.Message, maxMessage)}
}

func write(conn io.Writer, reply answer) error {
	line, err := json.Marshal(reply)
	if err != nil {
		return err
	}
	_, err = conn.Write(append(line, '\n'))
	return err
}
