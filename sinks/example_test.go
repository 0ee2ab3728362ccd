package sinks_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/postwire/postwire/sinks"
)

// A sink returns a permanent error for an event that the broker never accepts: the event
// becomes a dead letter. The relay retries after any other error.
func ExamplePermanent() {
	tooLarge := sinks.Permanent(sinks.ReasonTooLarge, errors.New("the message has 2 MB"))
	reason, permanent := sinks.IsPermanent(tooLarge)
	fmt.Println(reason, permanent)

	busy := sinks.RetryAfter(3*time.Second, errors.New("429 Too Many Requests"))
	_, permanent = sinks.IsPermanent(busy)
	fmt.Println(sinks.Wait(busy), permanent)
	// Output:
	// too_large true
	// 3s false
}
