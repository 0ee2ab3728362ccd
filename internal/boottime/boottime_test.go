package boottime

import (
	"testing"
	"time"
)

func TestNow(t *testing.T) {
	before, at := Now(), time.Now()
	time.Sleep(10 * time.Millisecond)
	if passed, monotonic := Now()-before, time.Since(at); passed < 10*time.Millisecond || passed > monotonic+time.Second {
		t.Errorf("the clock ran %v in %v", passed, monotonic)
	}
}
