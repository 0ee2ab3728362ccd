package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestPowerLoss cuts the power under load: what the disk was not told to sync
// is gone, in part or in whole, and the relay starts anew on what is left. From
// the cut on nothing of the old machine reaches a broker or a sender.
func TestPowerLoss(t *testing.T) {
	seeds := pick(4, 60)
	w := newWorld(t)
	disk := vfs.NewCrashableMem()
	r := newInside(t, w.config, disk)
	if err := r.open(t); err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, r.endpoint, 6, 0)
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 4))
		l.more(t, 50+rng.IntN(300))
		for _, way := range []*proxy{w.toNATS, w.toKafka} {
			way.set(t, weather{shut: true})
		}
		l.flip()
		disk = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: int(seed % 3 * 50), RNG: rng})
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		r.disk = disk
		if err := r.open(t); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, way := range []*proxy{w.toNATS, w.toKafka} {
			way.set(t, weather{})
		}
		l.flip()
	}
	l.more(t, 200)
	w.settle(t, r.endpoint, l, fmt.Sprintf("power loss, %d times; none, half or all of the unsynced data survives", seeds))
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// TestEveryFileOperationFails makes the nth change of the disk fail, once, for
// every n of a short life: a start, a few webhooks, their delivery, an orderly
// end. The relay refuses to start, or refuses webhooks for a moment, or goes
// on; it loses nothing that it took.
func TestEveryFileOperationFails(t *testing.T) {
	w := newWorld(t)
	acked := map[string]bool{}
	refused, failed, starts := 0, 0, 0
	for n := int64(1); ; n += pick[int64](5, 1) {
		mem := vfs.NewCrashableMem()
		var count atomic.Int64
		var hit atomic.Bool
		r := newInside(t, w.config, errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemove && count.Add(1) == n {
				hit.Store(true)
				return syscall.EIO
			}
			return nil
		})))
		for err := r.open(t); err != nil; err = r.open(t) {
			if starts++; !hit.Load() || !strings.Contains(err.Error(), syscall.EIO.Error()) {
				t.Fatalf("operation %d: starting: %v", n, err)
			}
		}
		for number := range 5 {
			eventually(t, "a webhook is taken", func() bool {
				_, err := r.post(upload(int(n), number))
				if err != nil && !strings.Contains(err.Error(), "503") {
					t.Fatalf("operation %d: %v", n, err)
				}
				if err != nil {
					refused++
				}
				return err == nil
			})
			acked[id(int(n), number)] = true
		}
		if n%2 == 0 { // for these it is the next process that delivers
			w.settled(t, r.endpoint)
		}
		_ = r.stop() // it may be what fails
		r.disk = mem.CrashClone(vfs.CrashCloneCfg{})
		if err := r.open(t); err != nil {
			t.Fatalf("operation %d: the disk after it: %v", n, err)
		}
		for number := range 5 {
			if status, err := r.post(upload(int(n), number)); err != nil || status != "duplicate" {
				t.Errorf("operation %d failed: %s was accepted before, and is %s: %v", n, id(int(n), number), status, err)
			}
		}
		w.settled(t, r.endpoint)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if !hit.Load() {
			break
		}
		failed++
	}
	l := &load{acked: acked, posted: len(acked) + refused}
	l.note(t, fmt.Sprintf("an I/O error at %d file operations in turn; %d starts refused", failed, starts),
		check(t, "JetStream", acked, w.onNATS(t), true), check(t, "Kafka", acked, w.onKafka(t), false))
}

// TestDiskFull lets the journal's disk run full while no broker takes anything,
// and gives it room again: by the floor below which the relay stops taking
// webhooks, and without one, where writing itself fails.
func TestDiskFull(t *testing.T) {
	for name, floor := range map[string]string{"with a floor of free space": "16MiB", "to the last byte": "0"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "disk")
			resize := mountSmallDisk(t, dir, "100m")
			w := newWorld(t)
			w.config = w.change(t, filepath.Dir(journalOf(w.config)), dir)
			r := start(t, w.change(t, "min_free_bytes: 0", "min_free_bytes: "+floor))
			for _, way := range []*proxy{w.toNATS, w.toKafka} {
				way.set(t, weather{shut: true})
			}
			l := startLoad(t, r.endpoint, 6, 0, func(l *load) {
				l.body = func(profile, number int) []byte { return captioned(profile, number, incompressible(9<<10)) }
			})
			eventually(t, "the disk is full", func() bool {
				status, err := r.post(captioned(99, 0, incompressible(9<<10)))
				return err != nil && strings.Contains(err.Error(), "503") && status == ""
			})
			full := l.acks()
			resize("300m")
			l.more(t, 200)
			for _, way := range []*proxy{w.toNATS, w.toKafka} {
				way.set(t, weather{})
			}
			w.settle(t, r.endpoint, l, fmt.Sprintf("the disk full, %s, after %d events; then room again", name, full))
			if err := r.stop(t); err != nil {
				t.Errorf("stopping: %v", err)
			}
		})
	}
}

// TestDiskFullAtStart starts the relay while something else has filled its disk to
// the last byte: it delivers what is stored, and takes webhooks as far as there
// is room. Nothing is lost. Without its reserve it says that the disk is full.
func TestDiskFullAtStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	mountSmallDisk(t, dir, "200m")
	w := newWorld(t)
	w.config = w.change(t, filepath.Dir(journalOf(w.config)), dir)
	w.config = w.change(t, "min_free_bytes: 0", "min_free_bytes: 16MiB")
	shut := func(is bool) {
		for _, way := range []*proxy{w.toNATS, w.toKafka} {
			way.set(t, weather{shut: is})
		}
	}
	r := start(t, w.config)
	shut(true)
	acked := map[string]bool{}
	for number := range 500 {
		if status, err := r.post(captioned(97, number, incompressible(9<<10))); err != nil || status != "accepted" {
			t.Fatalf("%s, %v", status, err)
		}
		acked[id(97, number)] = true
	}
	r.kill(t)
	somebody := filepath.Join(dir, "somebody-else")
	fill := func() {
		t.Helper()
		f, err := os.Create(somebody)
		if err != nil {
			t.Fatal(err)
		}
		for chunk := make([]byte, 1<<20); len(chunk) > 0; { // to the last byte
			if n, err := f.Write(chunk); err != nil || n < len(chunk) {
				chunk = chunk[:len(chunk)/2]
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	shut(false)
	r.launch(t)
	eventually(t, "the relay answers", func() bool {
		_, err := r.post(upload(98, 0))
		if err == nil {
			acked[id(98, 0)] = true
		}
		return err == nil || strings.Contains(err.Error(), "503")
	})
	w.settled(t, r.endpoint)
	check(t, "JetStream", acked, w.onNATS(t), true)
	check(t, "Kafka", acked, w.onKafka(t), false)
	if err := os.Remove(somebody); err != nil {
		t.Fatal(err)
	}
	eventually(t, "webhooks are taken again", func() bool { _, err := r.post(upload(98, 1)); return err == nil })
	acked[id(98, 1)] = true
	w.settled(t, r.endpoint)
	check(t, "JetStream", acked, w.onNATS(t), true)
	reserve := filepath.Join(journalOf(w.config), "RESERVE")
	eventually(t, "the reserve is there again", func() bool { _, err := os.Stat(reserve); return err == nil })
	if err := r.stop(t); err != nil {
		t.Error(err)
	}
	if !strings.Contains(r.log.String(), `"msg":"disk full: `) {
		t.Error("the log does not say that the disk is full")
	}
	if strings.Contains(r.log.String(), "damaged") {
		t.Error("the log takes a full disk for damage")
	}

	if err := os.Remove(reserve); err != nil {
		t.Fatal(err)
	}
	fill()
	before := len(r.log.String())
	r.launch(t)
	if err := <-r.exited; err == nil || !strings.Contains(r.log.String()[before:], "postwire: disk full: free space on the disk of "+journalOf(w.config)) {
		t.Errorf("a start without the reserve: %v\n%s", err, r.log.String()[before:])
	}
}

// journalOf returns the folder of the journal in a configuration.
func journalOf(config string) string {
	_, rest, _ := strings.Cut(config, `journal: {dir: "`)
	dir, _, _ := strings.Cut(rest, `"`)
	return dir
}

// incompressible is text that no compression makes much smaller.
func incompressible(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b)
}

// mountSmallDisk mounts a disk in memory at dir, and returns what changes its
// size. It needs the right to mount.
func mountSmallDisk(t *testing.T, dir, size string) (resize func(string)) {
	t.Helper()
	mount := func(flags uintptr, size string) error {
		return syscall.Mount("tmpfs", dir, "tmpfs", flags, "size="+size)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := mount(0, size); err != nil {
		t.Skipf("needs the right to mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		end := time.Now().Add(10 * time.Second)
		for err := syscall.Unmount(dir, 0); err != nil; err = syscall.Unmount(dir, 0) {
			if time.Now().After(end) {
				t.Errorf("unmounting %s: %v", dir, err)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	return func(size string) {
		if err := mount(syscall.MS_REMOUNT, size); err != nil {
			t.Fatal(err)
		}
	}
}
