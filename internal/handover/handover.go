//go:build unix

// Package handover passes the listening sockets of a running process to the process that
// replaces it, so that the kernel keeps accepting connections while the one stops and the
// other starts.
package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// socketName is the name of the socket on which a process offers its listeners.
const socketName = "handover.sock"

// greetingTimeout limits how long another process may take to receive the listeners.
const greetingTimeout = 5 * time.Second

// maxListeners limits the listeners of a process.
const maxListeners = 8

// stopRequest is what the successor sends when it has the listeners.
const stopRequest = "stop\n"

// Listener is a listening socket. Name and Address identify the socket in the configuration.
type Listener struct {
	Name    string           `json:"name"`
	Address string           `json:"address"`
	TCP     *net.TCPListener `json:"-"`
}

// Offer offers the listeners of this process to a successor.
type Offer struct {
	socket    *net.UnixListener
	successor *net.UnixConn // nil before the successor has the listeners
}

// Open creates the socket in a folder that this process alone uses.
func Open(dir string) (*Offer, error) {
	path, folder, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of a process that was killed
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("offering the listeners to a successor: %w", err)
	}
	l.SetUnlinkOnClose(false) // the path ends with folder
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &Offer{socket: l}, nil
}

// socketPath returns the path of the socket through an open folder: the path of a socket is
// limited to about 100 bytes, that of a folder is not. The caller closes the folder.
func socketPath(dir string) (path string, folder *os.File, err error) {
	folder, err = os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, socketName)
	if short := fmt.Sprintf("/proc/self/fd/%d", folder.Fd()); len(path) > 100 {
		if _, err := os.Stat(short); err == nil {
			path = filepath.Join(short, socketName)
		}
	}
	return path, folder, nil
}

// Serve passes the listeners to a successor, and returns when the successor has the
// listeners and asks this process to stop, or with the error of ctx. Serve is called once.
func (o *Offer) Serve(ctx context.Context, listeners []Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = o.socket.SetDeadline(time.Now()) })
	defer stop()
	for {
		c, err := o.socket.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("waiting for a successor: %w", err)
		}
		if err := greet(c, listeners); err != nil {
			_ = c.Close() // it was no successor, or it has ended
			continue
		}
		o.successor = c
		return nil
	}
}

// greet passes the listeners to a process, and waits for its request to stop.
func greet(c *net.UnixConn, listeners []Listener) error {
	if err := c.SetDeadline(time.Now().Add(greetingTimeout)); err != nil {
		return err
	}
	text, err := json.Marshal(listeners)
	if err != nil {
		return err
	}
	if err := withDescriptors(listeners, nil, func(fds []int) error {
		_, _, err := c.WriteMsgUnix(append(text, '\n'), syscall.UnixRights(fds...), nil)
		return err
	}); err != nil {
		return err
	}
	request, err := bufio.NewReader(io.LimitReader(c, int64(len(stopRequest)))).ReadString('\n')
	if err == nil && request != stopRequest {
		err = fmt.Errorf("the successor says %q", request)
	}
	return err
}

// withDescriptors calls do with the file descriptors of all listeners. A descriptor that was
// taken out with File would leave the non-blocking mode, and with it the listener.
func withDescriptors(listeners []Listener, fds []int, do func([]int) error) error {
	if len(listeners) == 0 {
		return do(fds)
	}
	raw, err := listeners[0].TCP.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = withDescriptors(listeners[1:], append(fds, int(fd)), do) }); err != nil {
		return err
	}
	return failed
}

// Close ends the offer. A successor learns that this process has stopped.
func (o *Offer) Close() error {
	err := o.socket.Close()
	if o.successor != nil {
		err = errors.Join(err, o.successor.Close())
	}
	return err
}

// Inherited are the listeners of a running process.
type Inherited struct {
	Listeners []Listener
	conn      *net.UnixConn
}

// Take takes the listeners of the process that offers them in a folder, and asks the process
// to stop. Without such a process, Take returns nil.
func Take(ctx context.Context, dir string) (inherited *Inherited, err error) {
	path, folder, err := socketPath(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // documented
	}
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil //nolint:nilnil // documented
	}
	if err != nil {
		return nil, fmt.Errorf("asking the running process for its listeners: %w", err)
	}
	inherited = &Inherited{conn: conn.(*net.UnixConn)} //nolint:forcetypeassert // the network is unix
	if err := inherited.receive(); err != nil {
		return nil, errors.Join(fmt.Errorf("taking the listeners of the running process: %w", err), inherited.Close())
	}
	return inherited, nil
}

func (t *Inherited) receive() error {
	if err := t.conn.SetDeadline(time.Now().Add(greetingTimeout)); err != nil {
		return err
	}
	text, rights := make([]byte, 4096), make([]byte, syscall.CmsgSpace(4*maxListeners))
	n, m, _, _, err := t.conn.ReadMsgUnix(text, rights)
	if err != nil {
		return err
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:m])
	if err != nil {
		return err
	}
	var fds []int
	for _, message := range messages {
		some, err := syscall.ParseUnixRights(&message)
		if err != nil {
			return err
		}
		fds = append(fds, some...)
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "listener")
	}
	defer func() {
		for _, f := range files {
			_ = f.Close() // the listeners have copies
		}
	}()
	if err := json.Unmarshal(text[:n], &t.Listeners); err != nil {
		return err
	}
	if len(files) != len(t.Listeners) {
		return fmt.Errorf("%d sockets for %d listeners", len(files), len(t.Listeners))
	}
	for i, f := range files {
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		tcp, ok := l.(*net.TCPListener)
		if !ok {
			return errors.Join(fmt.Errorf("%s is not a listener of TCP", t.Listeners[i].Name), l.Close())
		}
		t.Listeners[i].TCP = tcp
	}
	_, err = t.conn.Write([]byte(stopRequest))
	return err
}

// Wait waits until the other process has stopped.
func (t *Inherited) Wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = t.conn.SetDeadline(time.Now()) })
	defer stop()
	if err := t.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, err := t.conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		return errors.Join(ctx.Err(), err)
	}
	return nil
}

// Listener returns the listener with a name and an address, and removes it from Listeners;
// nil is none.
func (t *Inherited) Listener(name, address string) net.Listener {
	i := slices.IndexFunc(t.Listeners, func(l Listener) bool { return l.Name == name && l.Address == address })
	if i < 0 {
		return nil
	}
	l := t.Listeners[i].TCP
	t.Listeners = slices.Delete(t.Listeners, i, i+1)
	return l
}

// Close closes the listeners that nobody has taken out.
func (t *Inherited) Close() error {
	err := t.conn.Close()
	for _, l := range t.Listeners {
		if l.TCP != nil {
			err = errors.Join(err, l.TCP.Close())
		}
	}
	t.Listeners = nil
	return err
}
