# Entry of the ring-3 test guest: 64-bit mode, CPL 0, %rsi = boot_params, as the
# Linux 64-bit boot protocol has it. Loads the static page tables and GDT and
# drops to CPL 3 with IOPL 3, where ports can be used and code runs natively on
# every KVM. No interrupts, no IDT: a fault is a triple fault, a RESET event.
	.code64
	.section .text.start, "ax"
	.globl _start
_start:
	cli
	movq	%rsi, %rdi
	leaq	pml4(%rip), %rax
	movq	%rax, %cr3
	lgdt	gdt_ptr(%rip)
	pushq	$0x1b			# user data, RPL 3
	leaq	stack_top(%rip), %rax
	pushq	%rax
	pushq	$0x3002			# IOPL 3, IF 0
	pushq	$0x23			# user code, RPL 3
	leaq	user(%rip), %rax
	pushq	%rax
	iretq
user:
	xorl	%ebp, %ebp
	call	ring3_main
1:	jmp	1b

	.section .data
	.balign	16
gdt:
	.quad	0
	.quad	0x00af9b000000ffff	# 0x08 kernel code
	.quad	0x00cf93000000ffff	# 0x10 kernel data
	.quad	0x00cff3000000ffff	# 0x18 user data
	.quad	0x00affb000000ffff	# 0x20 user code
gdt_end:
gdt_ptr:
	.word	gdt_end - gdt - 1
	.quad	gdt

# Identity map of the first 8 GiB with 2 MiB pages, open to ring 3: present,
# writable, user, accessed, dirty, page size.
	.balign	4096
pml4:
	.quad	pdpt + 0x27
	.fill	511, 8, 0
pdpt:
	.set	i, 0
	.rept	8
	.quad	pd + i * 4096 + 0x27
	.set	i, i + 1
	.endr
	.fill	504, 8, 0
pd:
	.set	i, 0
	.rept	8 * 512
	.quad	i * 0x200000 + 0xe7
	.set	i, i + 1
	.endr

	.section .bss
	.balign	16
	.skip	16384
stack_top:
	.section .note.GNU-stack, "", @progbits
